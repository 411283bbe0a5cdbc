"""A training step asks its device nothing and sends it nothing: shown on torch's meta device, which has no values to give.

`.item()`, a branch on a value and a shape that hangs on values all fail there; copies between devices are caught by a mode.
"""

import contextlib
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from neigenmaps.data import BatchAugmentation, ViewLaw, simclr_cifar_law
from neigenmaps.nn import NestedLowRank, NeuralEigenmap, Objective, SimCLR, SpectralContrastive
from neigenmaps.training import CollapseGuard, EigenmapModule

META = torch.device("meta")
EVERYTHING = ViewLaw(
    rotate=10, translate=0.1, scale=(0.9, 1.1), shear=5, gain=(0.7, 1.3), noise=0.1, blur=0.5, solarize=0.2
)


class OneDevice(TorchDispatchMode):
    """Fails where tensors of two devices meet in one operation (numbers of the CPU, which travel with the launch, may), and
    where one is built from Python numbers, as these would be copied there."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func != torch.ops.aten.lift_fresh.default or args[0].is_cpu, "a tensor is built from Python numbers"
        made = func(*args, **(kwargs or {}))
        tensors = [one for one in tree_leaves((args, kwargs, made)) if isinstance(one, Tensor)]
        devices = {one.device.type for one in tensors if one.ndim or one.device != torch.device("cpu")}
        assert len(devices) <= 1, f"{func} brings together {devices}"
        return made


class Elsewhere(torch.Generator):
    """Where there is no generator of the device itself."""

    device = META


@pytest.fixture(autouse=True)
def no_autocast(monkeypatch: pytest.MonkeyPatch) -> None:  # which knows no meta device
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())


def module(objective: Objective) -> EigenmapModule:
    with META:
        built = EigenmapModule(
            in_chans=3, image_size=32, width=16, hidden=32, pixel_mean=(0.5,) * 3, pixel_std=(0.2,) * 3
        )
    built.objective = objective.to(META)
    built.log = lambda *_, **__: None  # type: ignore[method-assign, assignment]
    return built.train()


def batch() -> dict[str, Tensor]:
    return {
        "views": torch.empty(2, 8, 3, 32, 32, device=META),
        "small_views": torch.empty(3, 8, 3, 16, 16, device=META),
    }


@pytest.mark.parametrize("output_size", [None, 16])
@pytest.mark.parametrize("laws", [simclr_cifar_law(), (simclr_cifar_law(), EVERYTHING)], ids=["one law", "two laws"])
def test_making_views_waits_for_nothing(laws: Any, output_size: int | None) -> None:
    images = torch.empty(8, 3, 32, 32, dtype=torch.uint8, device=META)
    with OneDevice():
        views = BatchAugmentation(laws, n_views=3, output_size=output_size)(images, Elsewhere())
    assert (views.device, views.shape[:3]) == (META, (3, 8, 3))


@pytest.mark.parametrize(
    "objective",
    [
        lambda: NestedLowRank("octave"),
        lambda: NestedLowRank("sequential"),
        lambda: NestedLowRank("joint"),
        lambda: NestedLowRank("octave", scale=2.5, threshold=0.5),
        NeuralEigenmap,
        SpectralContrastive,
    ],
    ids=["octave", "sequential", "joint", "threshold", "neural eigenmap", "spectral contrastive"],
)
def test_a_step_waits_for_nothing(objective: Callable[[], Objective]) -> None:
    ours = module(objective())
    with OneDevice():
        ours.training_step(batch(), 0)["loss"].backward()
    assert all(parameter.grad is not None for parameter in ours.model.parameters())


def test_a_step_that_waits_is_caught() -> None:
    with pytest.raises(NotImplementedError):  # lightly's loss picks its negatives by a mask
        module(SimCLR()).training_step(batch(), 0)
    with pytest.raises(AssertionError, match="brings together"), OneDevice():
        torch.ones(3).to(META)
    with pytest.raises(AssertionError, match="Python numbers"), OneDevice():
        torch.tensor([1.0, 2.0], device=META)


def test_the_guard_waits_for_nothing_between_checks() -> None:
    ours = module(NestedLowRank())
    optimizer = torch.optim.AdamW(ours.model.parameters())
    optimizer._step_supports_amp_scaling = True  # type: ignore[attr-defined]  # as the fused one of GPUs
    place = {"current_epoch": 0, "global_step": 0, "fit_loop": SimpleNamespace(batch_idx=0), "precision_plugin": None}
    trainer: Any = SimpleNamespace(num_training_batches=100, is_last_batch=False, optimizers=[optimizer], **place)
    guard = CollapseGuard()
    guard.on_train_start(trainer, ours)
    with OneDevice():
        result = ours.training_step(batch(), 0)
        guard.on_before_backward(trainer, ours, result["loss"])
        result["loss"].backward()
        guard.on_before_optimizer_step(trainer, ours, optimizer)
        guard.on_train_batch_end(trainer, ours, result, batch(), 0)
    assert optimizer.found_inf.device == META  # type: ignore[attr-defined]
