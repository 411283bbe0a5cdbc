"""Averaged weights are the recurrence's, are ordered at the end, resume bit for bit, and stay clear of bad steps."""

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from small_runs import STEPS_PER_EPOCH, make_data, make_module, make_trainer

from neigenmaps.errors import InputError
from neigenmaps.training import CollapseGuard, EigenmapModule, EMAWeights, FitRitz, read_checkpoint
from neigenmaps.training.saved_models import read_model

NO_CHECKPOINTS = "ignore:Be aware that when using `ckpt_path`, callbacks"  # the resumed run writes none


class Weights(Callback):
    """The projector's last weights after every step."""

    def __init__(self) -> None:
        self.seen: list[torch.Tensor] = []

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *given: Any) -> None:
        self.seen.append(pl_module.model.projector[3].weight.detach().double().clone())


def fit(folder: Path, images: Path, *callbacks: Callback, epochs: int = 2, **options: Any) -> EigenmapModule:
    module = make_module()
    path = options.pop("ckpt_path", None)
    trainer = make_trainer(folder, epochs, callbacks=[*callbacks, FitRitz(100, folder / "last.ckpt")], **options)
    trainer.fit(module, datamodule=make_data(images), ckpt_path=path, weights_only=True)
    return module


@pytest.mark.parametrize("start", [0, 3])
def test_the_recurrence(tmp_path: Path, few_digits: Path, start: int) -> None:
    weights = Weights()
    module = fit(tmp_path, few_digits, weights, EMAWeights(0.7, start))
    expected = weights.seen[start]
    for seen in weights.seen[start + 1 :]:
        expected = 0.7 * expected + 0.3 * seen
    assert len(weights.seen) == 2 * STEPS_PER_EPOCH
    torch.testing.assert_close(module.model.projector[3].weight.double(), expected, rtol=1e-5, atol=1e-7)
    assert not torch.allclose(module.model.projector[3].weight.double(), weights.seen[-1], rtol=1e-3)


def test_the_checkpoint_at_the_end_holds_averaged_and_ordered(tmp_path: Path, few_digits: Path) -> None:
    module = fit(tmp_path, few_digits, EMAWeights(0.7))
    saved = read_model(tmp_path / "last.ckpt")
    images = torch.rand(5, 1, 8, 8)
    assert int(saved.ritz_rank) > 0
    assert torch.equal(saved.encode(images), module.model.encode(images))


def test_validation_sees_averaged_weights_and_training_does_not(tmp_path: Path, few_digits: Path) -> None:
    module, ema, weights = make_module(), EMAWeights(0.7), Weights()
    seen: list[torch.Tensor] = []

    class AtValidation(Callback):
        def on_validation_batch_end(self, trainer: pl.Trainer, pl_module: Any, *given: Any) -> None:
            seen.append(pl_module.model.projector[3].weight.detach().double().clone())

    trainer = make_trainer(tmp_path, 2, callbacks=[weights, AtValidation(), ema, FitRitz(100)], limit_val_batches=1)
    trainer.fit(module, datamodule=make_data(few_digits))
    expected = weights.seen[0]
    for one in weights.seen[1:STEPS_PER_EPOCH]:
        expected = 0.7 * expected + 0.3 * one
    torch.testing.assert_close(seen[0], expected, rtol=1e-5, atol=1e-7)
    untouched, alone = make_module(), Weights()
    make_trainer(tmp_path, 2, callbacks=[alone, FitRitz(100)]).fit(untouched, datamodule=make_data(few_digits))
    assert all(map(torch.equal, weights.seen, alone.seen))


@pytest.mark.filterwarnings(NO_CHECKPOINTS)
def test_resume_with_averaged_weights(tmp_path: Path, few_digits: Path) -> None:
    whole = fit(tmp_path / "whole", few_digits, EMAWeights(0.7), epochs=3)
    kept: dict[str, Any] = {"every_n_epochs": 1, "save_top_k": -1, "save_on_train_epoch_end": True}
    checkpoints = pl.callbacks.ModelCheckpoint(tmp_path / "half", "{epoch}", **kept)
    fit(tmp_path / "half", few_digits, EMAWeights(0.7), checkpoints, epochs=3, enable_checkpointing=True)
    middle = tmp_path / "half" / "epoch=0.ckpt"
    resumed = fit(tmp_path / "rest", few_digits, EMAWeights(0.7), epochs=3, ckpt_path=middle)
    assert read_checkpoint(middle)["global_step"] == STEPS_PER_EPOCH
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


def test_a_bad_step_is_not_averaged(tmp_path: Path, few_digits: Path) -> None:
    class Spoil(Callback):
        def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            if trainer.global_step == 2:
                for name, value in pl_module.named_buffers():
                    if name.endswith("running_mean"):
                        value.fill_(torch.nan)
                next(pl_module.parameters()).grad.fill_(torch.nan)  # type: ignore[union-attr]

    with pytest.warns(UserWarning, match="were left out"):
        module = fit(tmp_path, few_digits, Spoil(), CollapseGuard(), EMAWeights(0.7))
    assert all(torch.isfinite(value).all() for value in module.state_dict().values())


def test_order_of_callbacks(tmp_path: Path, few_digits: Path) -> None:
    with pytest.raises(InputError, match="list it after"):
        fit(tmp_path, few_digits, EMAWeights(), CollapseGuard())


@pytest.mark.parametrize("wrong", [{"decay": 1.0}, {"decay": -0.1}, {"start": -1}])
def test_settings_out_of_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="EMAWeights: expected"):
        EMAWeights(**wrong)
