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
from neigenmaps.training.gather import process, sum_over_processes

Compile = bool | Literal["auto", "reduce-overhead"]
Network = Callable[[Tensor], Outputs]
WARM_UP, ROUNDS, FEWEST = 2, 7, 3
ENOUGH_SECONDS = 10.0  # where all rounds would take longer, the fewest do: long steps vary less
MARGIN = 0.03  # a smaller gain is within the noise of so few rounds


class FirstPasses(NamedTuple):
    """Seconds that compiling took, with the first pass, and those of a pass after it; or why there is no compiled network."""

    failure: str = ""
    compiling: float = 0.0
    compiled: float = 0.0


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
        first = first_passes(model, network, images)
        failures, second = _sums([bool(first.failure), first.compiled], images[0].device)
        if failures:
            say(f"compile: {first.failure or 'another process failed'}; the encoder stays as it is.")
            return None
        if how != "auto":
            say(f"compile: the encoder is compiled, in {first.compiling:.0f} s.")
            return network
        rounds = FEWEST if 2 * ROUNDS * second > ENOUGH_SECONDS else ROUNDS
        times = [_sums(one, images[0].device) for one in in_turns(model, (model, network), images, rounds)]
    eager, compiled = map(statistics.median, times)
    pays = compiled < (1 - MARGIN) * eager
    processes = process()[1]
    say(
        f"compile: a step of the encoder takes {1e3 * eager / processes:.2f} ms as it is and {1e3 * compiled / processes:.2f} ms "
        f"compiled (median of {rounds}; {first.compiling:.0f} s to compile): {'compiled' if pays else 'it stays as it is'}."
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


def first_passes(model: NeuralEigenmapModel, network: Network, images: Sequence[Tensor]) -> FirstPasses:
    try:
        return FirstPasses("", seconds(model, network, images), seconds(model, network, images))
    except _failures() as error:
        return FirstPasses(f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}")


def in_turns(
    model: NeuralEigenmapModel, networks: Sequence[Network], images: Sequence[Tensor], rounds: int
) -> list[list[float]]:
    """Seconds of each pass of each network, after warming up; in turns, so that a busy machine slows all."""
    times = [[seconds(model, one, images) for one in networks] for _ in range(WARM_UP + rounds)]
    return [list(column) for column in zip(*times[WARM_UP:], strict=True)]


def _sums(values: Sequence[float], device: torch.device) -> list[float]:
    """Over all processes; float32 on all devices."""
    total: list[float] = sum_over_processes(torch.tensor(values, dtype=torch.float32, device=device)).tolist()
    return total


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
