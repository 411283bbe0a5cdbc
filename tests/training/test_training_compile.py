"""Compiling changes the speed and nothing else: the rule, the ways out, and that neither trial nor choice leaves a trace."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from small_runs import STEPS_PER_EPOCH, make_data, make_module, make_trainer
from test_training_ddp import free_port
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException

from neigenmaps.data import SmallViews, ViewLaw
from neigenmaps.errors import InputError
from neigenmaps.nn import NeuralEigenmapModel
from neigenmaps.training import EigenmapModule, EMAWeights, FitRitz, compiling, read_checkpoint
from neigenmaps.training.saved_models import read_model
from neigenmaps.training.sharding import FSDP


class Stub:
    """A compiled network of the plain one's values, that counts, draws random numbers, and fails if told to."""

    def __init__(self, failure: Exception | None = None) -> None:
        self.failure, self.sizes = failure, []
        self.model: NeuralEigenmapModel

    def build(self, model: NeuralEigenmapModel, how: compiling.Compile) -> Callable[[Tensor], Any]:
        self.model = model
        return self

    def __call__(self, images: Tensor) -> Any:
        self.sizes.append(images.shape[-1])
        if self.failure is not None:
            raise self.failure
        return self.model.forward(images)


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Stub:
    stub = Stub()
    monkeypatch.setattr(compiling, "build", stub.build)
    return stub


def take(monkeypatch: pytest.MonkeyPatch, eager: float, compiled: float) -> None:
    """So many seconds, in turns around them."""
    noise = iter(1 + 0.01 * (number % 3 - 1) for number in range(10**6))

    def seconds(model: nn.Module, network: Any, images: Any) -> float:
        return (eager if network is model else compiled) * next(noise)

    monkeypatch.setattr(compiling, "seconds", seconds)


def fit(folder: Path, images: Path, how: compiling.Compile, **options: Any) -> EigenmapModule:
    module = make_module(compile=how)
    module.model.backbone.blocks.append(nn.Dropout(0.2))  # type: ignore[union-attr,operator]
    data = make_data(images, small_views=SmallViews(laws=[ViewLaw(crop_scale=(0.2, 0.5))], size=6))
    options = {"callbacks": [EMAWeights(0.7), FitRitz(100, folder / "last.ckpt")]} | options
    make_trainer(folder, 2, **options).fit(module, datamodule=data)
    return module


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, few_digits: Path) -> tuple[EigenmapModule, Tensor]:
    """Trained without compiling, and what the global generator gives next."""
    return fit(tmp_path_factory.mktemp("plain"), few_digits, False), torch.rand(3)


def assert_equal_states(ours: nn.Module, theirs: nn.Module) -> None:
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    for name, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value), name


@pytest.mark.parametrize(("compiled", "chosen"), [(0.5, True), (0.95, True), (0.98, False), (1.3, False)])
def test_what_is_faster_by_the_margin_is_kept(
    monkeypatch: pytest.MonkeyPatch, stub: Stub, capsys: pytest.CaptureFixture[str], compiled: float, chosen: bool
) -> None:
    take(monkeypatch, 1.0, compiled)
    model = NeuralEigenmapModel(width=4, hidden=8)
    network = compiling.compiled_network(model, [torch.rand(4, 1, 8, 8)], "auto")
    (line,) = capsys.readouterr().out.splitlines()
    assert (network is stub) == chosen
    assert f"1000.00 ms as it is and {1e3 * compiled:.2f} ms compiled" in line
    assert line.endswith("): compiled." if chosen else "it stays as it is.")


@pytest.mark.parametrize(("seconds", "rounds"), [(0.01, compiling.ROUNDS), (1.0, compiling.FEWEST)])
def test_long_steps_are_measured_less_often(
    monkeypatch: pytest.MonkeyPatch, stub: Stub, capsys: pytest.CaptureFixture[str], seconds: float, rounds: int
) -> None:
    take(monkeypatch, 2 * seconds, seconds)
    compiling.compiled_network(NeuralEigenmapModel(width=4, hidden=8), [torch.rand(4, 1, 8, 8)], "auto")
    assert f"(median of {rounds};" in capsys.readouterr().out


@pytest.mark.parametrize(("how", "compiled", "used"), [("auto", 0.5, True), ("auto", 2.0, False), (True, 2.0, True)])
def test_training_is_that_of_the_plain_encoder(
    tmp_path: Path,
    few_digits: Path,
    plain: tuple[EigenmapModule, Tensor],
    monkeypatch: pytest.MonkeyPatch,
    stub: Stub,
    how: compiling.Compile,
    compiled: float,
    used: bool,
) -> None:
    """Averaged, ordered and saved, with views of two sizes and dropout."""
    take(monkeypatch, 1.0, compiled)
    ours = fit(tmp_path / "ours", few_digits, how)
    assert torch.equal(torch.rand(3), plain[1])
    assert stub.sizes == (2 * STEPS_PER_EPOCH * [8, 6] if used else [])
    assert_equal_states(ours, plain[0])
    assert_equal_states(read_model(tmp_path / "ours" / "last.ckpt"), plain[0].model)
    pickle.loads(pickle.dumps(ours.model))
    assert ours._compiled is None  # a function that nobody could pickle


@pytest.mark.parametrize("failure", [None, TorchDynamoException("no compiler\nat all")])
def test_a_trial_leaves_no_trace(
    tmp_path: Path,
    few_digits: Path,
    plain: tuple[EigenmapModule, Tensor],
    monkeypatch: pytest.MonkeyPatch,
    stub: Stub,
    capsys: pytest.CaptureFixture[str],
    failure: Exception | None,
) -> None:
    """Measured passes, with BatchNorm and dropout, or a failure in the midst of them."""
    monkeypatch.setattr(compiling, "MARGIN", 1.0)  # never kept
    stub.failure = failure
    assert_equal_states(fit(tmp_path / "ours", few_digits, "auto"), plain[0])
    passes = 1 if failure else 2 * (2 + compiling.WARM_UP + compiling.ROUNDS)
    assert len(stub.sizes) == passes
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("compile: "))
    assert line.endswith("it stays as it is." if failure is None else "no compiler; the encoder stays as it is.")


def test_other_errors_are_not_hidden(stub: Stub) -> None:
    stub.failure = RuntimeError("not the compiler's")
    with pytest.raises(RuntimeError, match="not the compiler's"):
        compiling.compiled_network(NeuralEigenmapModel(width=4, hidden=8), [torch.rand(4, 1, 8, 8)], "auto")


def test_cuda_graphs_need_cuda(tmp_path: Path, few_digits: Path) -> None:
    with pytest.raises(InputError, match="this run is on cpu: use auto"):
        fit(tmp_path, few_digits, "reduce-overhead")


def test_not_with_fsdp() -> None:
    module = make_module(compile=True)
    module._trainer = SimpleNamespace(strategy=FSDP())  # type: ignore[assignment]
    with pytest.raises(InputError, match=r"set model\.compile to false"):
        module.configure_model()


def work(rank: int, world: int, port: int, folder: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=world)
    model, images, found = NeuralEigenmapModel(width=4, hidden=8), [torch.rand(4, 1, 8, 8)], {}
    cases = {
        "one is much faster": (None, 0.2 if rank else 1.1),
        "one is much slower": (None, 3.0 if rank else 0.9),
        "one fails": (TorchDynamoException("no compiler") if rank else None, 0.1),
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, (failure, compiled) in cases.items():
            stub = Stub(failure)
            patch.setattr(compiling, "build", stub.build)
            if failure is None:
                take(patch, 1.0, compiled)
            elif rank:
                patch.undo()
                patch.setattr(compiling, "build", stub.build)
            found[name] = compiling.compiled_network(model, images, "auto") is not None
    torch.save(found, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize(("theirs", "chosen"), [([0, 1.0, 0.2], True), ([0, 1.0, 3.0], False), ([1, 0, 0], False)])
def test_the_choice_is_of_all_processes(
    monkeypatch: pytest.MonkeyPatch, stub: Stub, theirs: list[float], chosen: bool
) -> None:
    """Another process is much faster compiled, much slower, or has no compiler."""
    take(monkeypatch, 1.0, 0.9 if not chosen else 1.1)
    failed, *seconds = theirs
    others = iter([[failed, seconds[1]], *([one] * compiling.ROUNDS for one in seconds)])
    monkeypatch.setattr(compiling, "sum_over_processes", lambda ours: ours + torch.tensor(next(others))[: len(ours)])
    model = NeuralEigenmapModel(width=4, hidden=8)
    assert (compiling.compiled_network(model, [torch.rand(4, 1, 8, 8)], "auto") is stub) == chosen


@pytest.mark.ddp
@pytest.mark.slow
def test_ddp_processes_choose_alike(tmp_path: Path) -> None:
    mp.spawn(work, args=(2, free_port(), str(tmp_path)), nprocs=2)
    wanted = {"one is much faster": True, "one is much slower": False, "one fails": False}
    assert [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)] == [wanted, wanted]


@pytest.mark.slow
def test_a_real_compiler(tmp_path: Path, few_digits: Path) -> None:
    """Dropout draws the numbers it would; rounding differs; names and files are those of the plain encoder."""
    exact = {
        "precision": "64-true"
    }  # in float32 Adam makes whole steps of rounding where gradients are next to nothing
    wanted = fit(tmp_path / "plain", few_digits, False, **exact).state_dict()
    ours = fit(tmp_path / "ours", few_digits, True, **exact)
    assert ours.state_dict().keys() == wanted.keys()
    for name, value in wanted.items():
        if "ritz" not in name:  # whose signs and order amplify
            torch.testing.assert_close(ours.state_dict()[name], value, rtol=1e-7, atol=1e-9)
    assert read_checkpoint(tmp_path / "ours" / "last.ckpt")["state_dict"].keys() == wanted.keys()
    ours.model.save_pretrained(tmp_path / "model")
    assert_equal_states(NeuralEigenmapModel.from_pretrained(tmp_path / "model"), ours.model.float())


@pytest.mark.slow
def test_without_a_real_compiler(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from torch._inductor import config

    torch.compiler.reset()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(config.cpp, "cxx", (None, "/bin/false"))
    model = NeuralEigenmapModel(width=4, hidden=8)
    assert compiling.compiled_network(model, [torch.rand(4, 1, 8, 8)], True) is None
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("compile: InductorError: InvalidCxxCompiler")
