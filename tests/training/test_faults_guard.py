"""CollapseGuard: planted faults are left out, set back or named within an epoch; healthy runs are not touched."""

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from sklearn.datasets import load_digits
from small_runs import STEPS_PER_EPOCH, make_data, make_module, make_trainer
from torch import Tensor, nn

from neigenmaps.data import ViewLaw
from neigenmaps.errors import CollapseError, CollapseWarning, InputError
from neigenmaps.functional.eigenmap import EigenmapResult
from neigenmaps.nn import NestedLowRank, NeuralEigenmap, Objective, VICReg
from neigenmaps.training import CollapseGuard, EigenmapModule, FitRitz, ViewsDataModule
from neigenmaps.training.collapse_guard import advice


class Faulty(Objective):
    """Nested low-rank, but at the given calls its loss (or only its gradient) is not finite."""

    def __init__(self, calls: set[int], kind: str = "loss") -> None:
        super().__init__()
        self.calls, self.kind, self.call = calls, kind, 0

    def forward(self, z1: Tensor, z2: Tensor) -> EigenmapResult:
        self.call += 1
        if self.call not in self.calls:
            return NestedLowRank()(z1, z2)
        if self.kind == "gradient":  # the root of 0 has the value 0 and an infinite slope
            return NestedLowRank()(z1 + (z1 * 0).abs().sqrt(), z2)
        return NestedLowRank()(z1 * torch.nan, z2)


class Agreement(Objective):
    """Views agree and nothing else is asked: all functions become one constant."""

    def forward(self, z1: Tensor, z2: Tensor) -> EigenmapResult:
        loss = (z1 - z2).square().mean() + 0.1 * z1.square().mean()
        return EigenmapResult(loss, loss, loss, torch.ones(z1.shape[1]))


class Steps(pl.Callback):
    def __init__(self) -> None:
        self.states: list[dict[str, Tensor]] = []

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *rest: Any) -> None:
        self.states.append({name: value.clone() for name, value in module.state_dict().items()})


def fit(
    few_digits: Path,
    folder: Path,
    objective: Objective | None,
    guard: CollapseGuard | None,
    epochs: int = 2,
    **changes: Any,
) -> tuple[EigenmapModule, Steps, pl.Trainer]:
    module, steps = make_module(objective=objective, **changes), Steps()
    callbacks = [*([] if guard is None else [guard]), steps, FitRitz(100)]
    trainer = make_trainer(folder, epochs, callbacks=callbacks)
    trainer.fit(module, make_data(few_digits))
    return module, steps, trainer


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    counted = {name for name in a if name.endswith("num_batches_tracked")}  # read by nothing
    return all(torch.equal(a[name], b[name]) for name in a.keys() - counted)


@pytest.mark.parametrize("optimizer", ["adamw", "lars"])
def test_a_healthy_run_is_not_changed(few_digits: Path, tmp_path: Path, optimizer: str) -> None:
    guard = CollapseGuard(every=1)
    _, steps, trainer = fit(few_digits, tmp_path, None, guard, optimizer=optimizer)
    _, others, other = fit(few_digits, tmp_path, None, None, optimizer=optimizer)
    for a, b in zip(steps.states, others.states, strict=True):
        assert all(torch.equal(a[name], b[name]) for name in a)
    ours, theirs = (one.optimizers[0].state_dict()["state"] for one in (trainer, other))
    assert all(torch.equal(value, theirs[key][name]) for key, state in ours.items() for name, value in state.items())
    assert (guard.rollbacks, guard.skipped) == (0, 0)
    assert len(guard.readings) == 2 * STEPS_PER_EPOCH


@pytest.mark.parametrize("optimizer", ["adamw", "lars"])
@pytest.mark.parametrize("kind", ["loss", "gradient"])
def test_a_bad_step_changes_nothing(few_digits: Path, tmp_path: Path, optimizer: str, kind: str) -> None:
    guard = CollapseGuard(every=1)
    with pytest.warns(CollapseWarning, match="1 of the 1 steps before step 3 were left out"):
        _, steps, trainer = fit(few_digits, tmp_path, Faulty({3}, kind), guard, optimizer=optimizer)
    assert (guard.rollbacks, guard.skipped) == (0, 1)
    before, bad, after = steps.states[1:4]
    if kind == "loss":
        assert equal(before, bad)  # running statistics as well
    assert not equal(bad, after)
    assert all(torch.isfinite(value).all() for value in steps.states[-1].values())
    assert trainer.global_step == 2 * STEPS_PER_EPOCH


def test_a_bad_step_is_seen_at_the_next_check(few_digits: Path, tmp_path: Path) -> None:
    guard = CollapseGuard(every=3)
    with pytest.warns(CollapseWarning, match="1 of the 3 steps before step 3 were left out"):
        _, steps, _ = fit(few_digits, tmp_path, Faulty({2}), guard)
    assert equal(*steps.states[:2])
    assert [reading.step for reading in guard.readings] == [3, 4, 7, 8]


def test_bad_steps_in_a_row_go_back_with_half_the_rate(few_digits: Path, tmp_path: Path) -> None:
    guard = CollapseGuard(every=1)
    with pytest.warns(CollapseWarning) as spoken:
        _, steps, trainer = fit(few_digits, tmp_path, Faulty({3, 4, 5}), guard)
    assert "3 steps in a row gave a loss or a gradient that is not finite" in str(spoken[-1].message)
    assert guard.rollbacks == 1
    assert trainer.lr_scheduler_configs[0].scheduler.base_lrs == [0.5e-2, 0.5e-2]
    start = make_module().state_dict()
    assert equal(
        steps.states[4] | {"objective": start["model.pixel_mean"]}, start | {"objective": start["model.pixel_mean"]}
    )
    assert not equal(steps.states[4], steps.states[5])
    assert trainer.optimizers[0].param_groups[0]["lr"] < 0.5e-2


def test_a_run_that_cannot_be_saved_stops_with_a_diagnosis_and_a_batch(few_digits: Path, tmp_path: Path) -> None:
    with (
        pytest.warns(CollapseWarning),
        pytest.raises(CollapseError, match=r"step 6: 2 steps in a row .* not finite, after 1 time.* Lower model\.lr"),
    ):
        fit(few_digits, tmp_path, Faulty(set(range(3, 99))), CollapseGuard(every=1, max_skips=2, max_rollbacks=1))
    record = json.loads((tmp_path / "collapse" / "step=6.json").read_text())
    assert record["step"] == 6
    assert [reading["bad_steps"] for reading in record["readings"]] == [0, 0, 1, 1, 1, 1]
    saved = torch.load(tmp_path / "collapse" / "step=6.pt", weights_only=True)
    data = make_data(few_digits)
    data.setup()
    expected = data.training_batch(1, 1, torch.device("cpu"))
    assert saved["epoch_and_batch"] == (1, 1)
    assert torch.equal(saved["batch"]["views"], expected["views"])


def test_the_saved_batch_is_the_first_bad_one(few_digits: Path, tmp_path: Path) -> None:
    """Looked at four steps later, and made again from its place."""
    seen: list[Tensor] = []

    class Views(pl.Callback):
        def on_train_batch_start(self, trainer: Any, module: Any, batch: dict[str, Tensor], number: int) -> None:
            seen.append(batch["views"].clone())

    guard = CollapseGuard(every=4, max_skips=3, max_rollbacks=0)
    trainer = make_trainer(tmp_path, 2, callbacks=[guard, Views(), FitRitz(100)])
    with pytest.warns(CollapseWarning), pytest.raises(CollapseError):
        trainer.fit(make_module(objective=Faulty({6, 7, 8})), make_data(few_digits))
    saved = torch.load(tmp_path / "collapse" / "step=8.pt", weights_only=True)
    assert saved["epoch_and_batch"] == (1, 1)
    assert torch.equal(saved["batch"]["views"], seen[5])


class Plant(pl.Callback):
    """Writes a collapse into the weights, again and again, from a step on."""

    def __init__(self, kind: str, step: int) -> None:
        self.kind, self.step = kind, step

    def on_train_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, *rest: Any) -> None:
        if trainer.global_step < self.step:
            return
        last = module.model.projector[-1]  # type: ignore[union-attr,index]
        assert isinstance(last, nn.Linear)
        with torch.no_grad():
            if self.kind == "rank":
                last.weight.copy_(torch.randn(len(last.weight), 1) @ last.weight[:1] + 1e-3 * last.weight)
            elif self.kind == "copies":
                last.weight[len(last.weight) // 2 :] = last.weight[: len(last.weight) // 2].clone()
            elif self.kind == "constant":
                last.weight.mul_(1e-6)
                last.bias.fill_(1)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("rank", "copies|directions"),
        ("copies", "of the functions are copies"),
        ("constant", "constant|variance fell"),
    ],
)
def test_planted_collapses_alarm_within_an_epoch(few_digits: Path, tmp_path: Path, kind: str, said: str) -> None:
    planted = 5
    trainer = make_trainer(tmp_path, 4, callbacks=[Plant(kind, planted), CollapseGuard(max_rollbacks=0), FitRitz(100)])
    with pytest.raises(CollapseError, match=said):
        trainer.fit(make_module(width=16, hidden=32), make_data(few_digits))
    assert trainer.global_step - planted <= STEPS_PER_EPOCH


def test_a_planted_collapse_is_set_back(few_digits: Path, tmp_path: Path) -> None:
    class Once(Plant):
        def on_train_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, *rest: Any) -> None:
            if trainer.global_step < self.step + 2:
                super().on_train_batch_start(trainer, module)

    guard = CollapseGuard(every=1)
    trainer = make_trainer(tmp_path, 4, callbacks=[Once("copies", 5), guard, FitRitz(100)])
    with pytest.warns(CollapseWarning, match="copies .* those of step 0 again"):
        trainer.fit(make_module(width=16, hidden=32), make_data(few_digits))
    assert guard.rollbacks == 1
    assert guard.readings[-1].health.copies == 0


@pytest.mark.parametrize(
    ("objective", "said"),
    [(NeuralEigenmap(alpha=0.0), "copies|directions"), (Agreement(), "variance fell|constant|copies|directions")],
    ids=["no penalty", "agreement alone"],
)
def test_objectives_that_collapse(few_digits: Path, tmp_path: Path, objective: Objective, said: str) -> None:
    trainer = make_trainer(tmp_path, 60, callbacks=[CollapseGuard(max_rollbacks=0), FitRitz(100)])
    with pytest.raises(CollapseError, match=said):
        trainer.fit(make_module(objective=objective, width=8, hidden=32), make_data(few_digits))


def test_state_survives_a_resume(few_digits: Path, tmp_path: Path) -> None:
    guard = CollapseGuard(every=1)
    with pytest.warns(CollapseWarning):
        _, _, trainer = fit(few_digits, tmp_path, Faulty({2, 3, 4}), guard)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    again = CollapseGuard(every=1)
    later = make_trainer(tmp_path, 3, callbacks=[again, FitRitz(100)])
    later.fit(
        make_module(objective=Faulty(set())), make_data(few_digits), ckpt_path=tmp_path / "a.ckpt", weights_only=True
    )
    assert (again.rollbacks, again.skipped) == (guard.rollbacks, guard.skipped) == (1, 3)
    assert later.lr_scheduler_configs[0].scheduler.base_lrs == [0.5e-2, 0.5e-2]


def test_without_the_guard_the_module_stops_itself(few_digits: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the loss is nan at step"):
        make_trainer(tmp_path, log_every_n_steps=1, callbacks=[FitRitz(100)]).fit(
            make_module(objective=Faulty({1, 2, 3, 4})), make_data(few_digits)
        )


@pytest.mark.parametrize("wrong", [{"every": 0}, {"max_skips": 0}, {"max_rollbacks": -1}, {"lr_factor": 0.0}])
def test_arguments(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="CollapseGuard: expected every"):
        CollapseGuard(**wrong)


def test_advice_follows_the_symptom() -> None:
    assert "nested low-rank" in advice("30% of the functions are copies of earlier ones")
    assert "model.lr" in advice("3 steps in a row gave a loss or a gradient that is not finite")
    assert "views differ" in advice("the codes' variance fell")


@pytest.mark.slow
def test_no_false_alarm_on_ten_healthy_runs(tmp_path: Path) -> None:
    """All digits, the shipped recipe with a sixth of its epochs, over objectives, optimisers and seeds."""
    bunch = load_digits()
    images = (bunch.images * (255 / 16)).astype(np.uint8)
    np.savez(tmp_path / "digits.npz", x_train=images[:1437], x_test=images[1437:])
    law = ViewLaw(rotate=15, translate=0.1, scale=(0.9, 1.1), shear=10, gain=(0.7, 1.3), noise=0.08)
    recipes: list[dict[str, Any]] = [{"objective": NestedLowRank("octave")} for _ in range(4)]
    recipes += [{"objective": NestedLowRank("sequential")}, {"objective": NestedLowRank("joint")}]
    recipes += [{"objective": NeuralEigenmap(alpha=0.5)}, {"objective": VICReg()}]
    recipes += [{"optimizer": "lars", "lr": 0.5}, {"width": 16}]
    lowest: list[float] = []
    for seed, recipe in enumerate(recipes):
        guard = CollapseGuard()
        module = make_module(seed, **{"width": 128, "hidden": 512, "lr": 2e-3} | recipe)
        data = ViewsDataModule(str(tmp_path / "digits.npz"), laws=[law], batch_size=256, seed=seed)
        with warnings.catch_warnings():
            warnings.simplefilter("error", CollapseWarning)
            make_trainer(tmp_path, 20, callbacks=[guard, FitRitz(100)]).fit(module, data)
        assert (guard.rollbacks, guard.skipped) == (0, 0)
        lowest.append(min(reading.health.rank_share for reading in guard.readings))
    print("lowest share of rank by run:", [round(value, 3) for value in lowest])
