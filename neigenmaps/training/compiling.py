"""`model.compile`: the encoder of training by torch.compile, for good or where a measurement says that it pays.

What is unusual: the model itself is never wrapped. A compiled function beside it trains; state, checkpoints, copies, validation and
`encode` are of the plain model. The trial leaves no trace: running statistics and random streams are put back, and no gradient is
accumulated.
"""

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from neigenmaps.errors import InputError
from neigenmaps.nn import NeuralEigenmapModel
from neigenmaps.nn.model import Outputs
from neigenmaps.training.callbacks import say
from neigenmaps.training.gather import sum_over_processes

Compile = bool | Literal["auto", "reduce-overhead"]
Network = Callable[[Tensor], Outputs]
WARM_UP, ROUNDS = 2, 7
MARGIN = 0.05  # a smaller gain is within the noise of so few rounds


class Trial(NamedTuple):
    """Seconds of one forward and backward pass, and what compiling took; or why there is no compiled network."""

    failure: str = ""
    eager: float = 0.0
    compiled: float = 0.0
    compiling: float = 0.0


def check_compile(how: Compile, device: torch.device) -> None:
    """InputError for CUDA graphs without CUDA."""
    if how == "reduce-overhead" and device.type != "cuda":
        raise InputError(f"model.compile: 'reduce-overhead' records CUDA graphs, and this run is on {device}: use auto")


def compiled_network(model: NeuralEigenmapModel, images: Sequence[Tensor], how: Compile) -> Network | None:
    """The encoder compiled, or None where it stays as it is; one line says why. All processes come to the same answer.

    images: a step's, (N, C, H, W) for each size of view. how: "auto" keeps what is compiled if it is faster by `MARGIN`; the rest
    keeps it whenever it compiles.
    """
    network = build(model, how)
    with _no_trace(model, images[0].device):
        trial = try_out(model, network, images, how)
    failures, eager, compiled = sum_over_processes(
        torch.tensor([bool(trial.failure), trial.eager, trial.compiled], device=images[0].device)
    ).tolist()  # float32 on all devices
    if failures:
        say(f"compile: {trial.failure or 'another process failed'}; the encoder stays as it is.")
        return None
    if how != "auto":
        say(f"compile: the encoder is compiled, in {trial.compiling:.0f} s.")
        return network
    pays = compiled < (1 - MARGIN) * eager
    say(
        f"compile: a step of the encoder takes {1e3 * trial.eager:.2f} ms as it is and {1e3 * trial.compiled:.2f} ms compiled "
        f"(median of {ROUNDS}; {trial.compiling:.0f} s to compile): {'compiled' if pays else 'it stays as it is'}."
    )
    return network if pays else None


def build(model: NeuralEigenmapModel, how: Compile) -> Network:
    """Compiles when first called, once for each size of views. Random numbers are those of the plain model."""
    graphs = how == "reduce-overhead"
    options: dict[str, Any] = {"fallback_random": True} | ({"triton.cudagraphs": True} if graphs else {})
    forward: Network = torch.compile(model.forward, dynamic=False, options=options)

    def own_memory(images: Tensor) -> Outputs:
        return Outputs(*(part.clone() for part in forward(images)))  # a graph's outputs last until its next run

    return own_memory if graphs else forward


def try_out(model: NeuralEigenmapModel, network: Network, images: Sequence[Tensor], how: Compile) -> Trial:
    try:
        compiling = seconds(model, network, images)
    except _failures() as error:
        return Trial(f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}")
    if how != "auto":
        return Trial(compiling=compiling)
    times: tuple[list[float], list[float]] = ([], [])
    networks: tuple[Network, Network] = (model, network)
    for number in range(WARM_UP + ROUNDS):  # in turns, so that a busy machine slows both
        for one, found in zip(networks, times, strict=True):
            spent = seconds(model, one, images)
            found += [spent] if number >= WARM_UP else []
    return Trial("", statistics.median(times[0]), statistics.median(times[1]), compiling)


def seconds(model: NeuralEigenmapModel, network: Network, images: Sequence[Tensor]) -> float:
    """Of one forward and backward pass, whose gradient is dropped."""
    _wait(images[0].device)
    started = time.perf_counter()
    codes = [network(one).codes for one in images]
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    torch.autograd.grad(codes, weights, [one.detach() for one in codes], allow_unused=True)
    torch.clear_autocast_cache()
    _wait(images[0].device)
    return time.perf_counter() - started


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _failures() -> tuple[type[Exception], ...]:
    """Of the compiler; imported late, as it takes seconds."""
    from torch._dynamo.exc import TorchDynamoException
    from torch._inductor.exc import CppCompileError, InvalidCxxCompiler

    return TorchDynamoException, CppCompileError, InvalidCxxCompiler


@contextlib.contextmanager
def _no_trace(model: NeuralEigenmapModel, device: torch.device) -> Iterator[None]:
    kept = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        with torch.no_grad():
            for buffer, value in kept:
                buffer.copy_(value)
