"""A run that was stopped and resumed equals the run that was not, bit for bit: weights, statistics, optimiser, order, losses."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger
from small_runs import STEPS_PER_EPOCH, make_data, make_module, make_trainer
from torch import Tensor, nn

from neigenmaps.errors import CheckpointError
from neigenmaps.training import EigenmapModule, FitRitz, OnlineKNN, SpectrumMonitor

EPOCHS = 4
pytestmark = pytest.mark.filterwarnings("ignore:The dirpath has changed")  # a resumed run has a folder of its own


def make_dropping_module(seed: int, **changes: Any) -> EigenmapModule:
    """Draws from the global generator at every step."""
    module = make_module(seed, **changes)
    module.model.projector.insert(1, nn.Dropout(0.3))
    return module


class Losses(pl.Callback):
    """The loss of every step, and what the global generator gives when training has ended."""

    def __init__(self) -> None:
        self.by_step: dict[int, Tensor] = {}
        self.drawn: Tensor | None = None

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, *rest: Any) -> None:
        self.by_step[trainer.global_step] = outputs["loss"].detach().clone()

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.drawn = torch.rand(3)


def run(
    data_path: Path, folder: Path, *, seed: int = 0, checkpoint: Path | None = None, **saving: Any
) -> tuple[EigenmapModule, pl.Trainer, Losses]:
    module, losses = make_dropping_module(seed), Losses()
    kept = ModelCheckpoint(folder / "kept", "{step}", save_top_k=-1, **saving)
    callbacks = [FitRitz(100), OnlineKNN([2]), SpectrumMonitor(), losses, kept]
    trainer = make_trainer(
        folder,
        EPOCHS,
        callbacks=callbacks,
        logger=CSVLogger(folder / "logs"),
        log_every_n_steps=1,
        enable_checkpointing=True,
        limit_val_batches=1.0,
    )
    torch.manual_seed(seed + 17)
    trainer.fit(module, make_data(data_path), ckpt_path=checkpoint, weights_only=True)
    return module, trainer, losses


def assert_equal_states(a: Any, b: Any, where: str = "") -> None:
    assert type(a) is type(b), where
    if isinstance(a, Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_equal_states(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list | tuple):
        for number, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_equal_states(x, y, f"{where}[{number}]")
    else:
        assert a == b, where


def test_a_resumed_run_says_when_images_are_others(few_digits: Path, tmp_path: Path) -> None:
    with np.load(few_digits) as arrays:
        grown = dict(arrays) | {"x_train": np.roll(arrays["x_train"], 1, axis=0)}
    np.savez(tmp_path / "grown.npz", **grown)
    first = make_data(few_digits)
    first.setup()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first.load_state_dict(first.state_dict())
        first.load_state_dict({"next_batch": 0})  # of before images had a part in it
    second = make_data(tmp_path / "grown.npz")
    second.setup()
    with pytest.warns(UserWarning, match=r"grown\.npz: these are not the images that the checkpoint was trained on"):
        second.load_state_dict(first.state_dict())


@pytest.mark.parametrize(
    ("saving", "stopped_at"),
    [
        ({"every_n_epochs": 1}, 2 * STEPS_PER_EPOCH),
        ({"every_n_train_steps": 3}, 6),
        ({"every_n_train_steps": 7}, 7),
        ({"every_n_train_steps": 8}, 8),
    ],
    ids=["end of an epoch", "middle of an epoch", "before the last step of an epoch", "last step of an epoch"],
)
def test_resumed_equals_uninterrupted(
    few_digits: Path, tmp_path: Path, saving: dict[str, int], stopped_at: int
) -> None:
    whole, trainer, losses = run(few_digits, tmp_path / "whole", **saving)
    checkpoint = tmp_path / "whole" / "kept" / f"step={stopped_at}.ckpt"
    resumed, again, later = run(few_digits, tmp_path / "resumed", seed=5, checkpoint=checkpoint, **saving)
    total = EPOCHS * STEPS_PER_EPOCH
    assert trainer.global_step == again.global_step == total
    assert list(later.by_step) == list(range(stopped_at + 1, total + 1))
    for step, loss in later.by_step.items():
        assert torch.equal(loss, losses.by_step[step]), f"step {step}"
    assert_equal_states(whole.state_dict(), resumed.state_dict())
    assert int(resumed.model.ritz_rank) == 4
    assert_equal_states(trainer.optimizers[0].state_dict(), again.optimizers[0].state_dict())
    assert losses.drawn is not None
    assert later.drawn is not None
    assert torch.equal(losses.drawn, later.drawn)
    assert trainer.callback_metrics.keys() == again.callback_metrics.keys()
    assert_equal_states(dict(trainer.callback_metrics), dict(again.callback_metrics))


@pytest.mark.parametrize("stops", [(4, 8, 12), (3, 8, 12), (4, 5, 8), (8, 9, 12), (4, 4, 8)], ids=str)
def test_resumed_again_and_again_equals_uninterrupted(few_digits: Path, tmp_path: Path, stops: tuple[int, ...]) -> None:
    """Steps 4, 8 and 12 are the last of their epochs; a resumed run's own checkpoints must be as good as another's."""
    whole, trainer, losses = run(few_digits, tmp_path / "0", every_n_train_steps=1)
    for number, stop in enumerate(stops):
        checkpoint = tmp_path / str(number if stop not in stops[:number] else 0) / "kept" / f"step={stop}.ckpt"
        resumed, again, later = run(
            few_digits, tmp_path / str(number + 1), seed=number, checkpoint=checkpoint, every_n_train_steps=1
        )
        assert again.global_step == trainer.global_step
        assert list(later.by_step) == list(range(stop + 1, trainer.global_step + 1))
        assert_equal_states(losses.by_step, losses.by_step | later.by_step)
        assert_equal_states(whole.state_dict(), resumed.state_dict())


def test_generators_matter_in_this_test(few_digits: Path, tmp_path: Path) -> None:
    """Dropout draws from the global generator; without its state a resumed run would differ."""
    _, _, losses = run(few_digits, tmp_path / "a", every_n_epochs=1)
    path = tmp_path / "a" / "kept" / f"step={STEPS_PER_EPOCH}.ckpt"
    contents = torch.load(path, weights_only=True)
    contents["generator_states"]["cpu"] = torch.Generator().manual_seed(0).get_state()
    torch.save(contents, path)
    _, _, later = run(few_digits, tmp_path / "b", checkpoint=path, every_n_epochs=1)
    assert not torch.equal(losses.by_step[STEPS_PER_EPOCH + 1], later.by_step[STEPS_PER_EPOCH + 1])


def test_a_checkpoint_of_another_model(few_digits: Path, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    trainer.fit(make_module(), make_data(few_digits))
    trainer.save_checkpoint(tmp_path / "narrow.ckpt")
    with pytest.raises(CheckpointError, match=r"width is 4 there and 5 here; use its run folder's config\.yaml"):
        make_trainer(tmp_path, 2).fit(
            make_module(width=5), make_data(few_digits), ckpt_path=tmp_path / "narrow.ckpt", weights_only=True
        )


def test_a_checkpoint_of_another_optimizer(few_digits: Path, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    trainer.fit(make_module(), make_data(few_digits))
    trainer.save_checkpoint(tmp_path / "adamw.ckpt")
    with pytest.raises(
        CheckpointError, match=r"optimizer 'adamw', whose state 'lars' cannot .* set model\.optimizer to"
    ):
        make_trainer(tmp_path, 2).fit(
            make_module(optimizer="lars"), make_data(few_digits), ckpt_path=tmp_path / "adamw.ckpt", weights_only=True
        )
