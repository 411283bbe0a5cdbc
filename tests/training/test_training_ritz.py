"""Rayleigh-Ritz at the end of training, against the pencil solved by hand on the same views; and training that diverged."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import pytorch_lightning as pl
import scipy.linalg
import torch
from small_runs import make_data, make_module, make_trainer

from neigenmaps.data import ViewLaw
from neigenmaps.errors import InputError, NonFiniteError
from neigenmaps.functional import rayleigh_ritz
from neigenmaps.training import FitRitz, ViewsDataModule, fit_ritz, ritz_of

PAIRS = 200  # of 70 rows: three passes


@pytest.fixture
def data(few_digits: Path) -> ViewsDataModule:
    data = make_data(few_digits)
    data.setup()
    return data


def test_eigenvalues_agree_with_the_pencil_solved_by_hand(data: ViewsDataModule) -> None:
    model = make_module(width=6, hidden=64).model.eval()
    with torch.no_grad():
        pairs = [
            model(views.flatten(0, 1)).codes.double().chunk(2) for views in data.training_views(3, torch.device("cpu"))
        ]
    a, b = (np.concatenate([pair[side].numpy() for pair in pairs]) for side in (0, 1))
    both = np.concatenate([a, b])
    a, b = a - both.mean(0), b - both.mean(0)
    power, cross = (a.T @ a + b.T @ b) / 420, (a.T @ b + b.T @ a) / 420
    expected = np.sort(scipy.linalg.eigh(cross, power, eigvals_only=True))[::-1]
    ritz = fit_ritz(model, data, pairs=PAIRS)
    np.testing.assert_allclose(ritz.eigenvalues.numpy(), expected, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(model.eigenvalues.numpy(), expected, rtol=1e-5, atol=1e-6)


def test_the_model_encodes_afterwards_in_falling_order(data: ViewsDataModule) -> None:
    model = make_module(width=6, hidden=64).model
    fit_ritz(model, data, pairs=PAIRS)
    assert int(model.ritz_rank) == 6
    assert torch.equal(model.eigenvalues, model.eigenvalues.sort(descending=True).values)
    codes = model.encode(data.splits.train.images_NCHW, scaling="unit")
    assert codes.shape == (70, 6)
    assert (codes.abs().max(0).values == codes.max(0).values).all()  # signs: the largest value is positive


def test_fitting_twice_agrees_and_leaves_modes_and_statistics(data: ViewsDataModule) -> None:
    model = make_module().model.train()
    model.backbone.eval()
    before = {name: value.clone() for name, value in model.named_buffers() if "running" in name}
    first, second = fit_ritz(model, data, pairs=PAIRS), fit_ritz(model, data, pairs=PAIRS)
    assert torch.equal(first.rotation, second.rotation)
    assert model.projector.training
    assert not model.backbone.training
    assert all(torch.equal(dict(model.named_buffers())[name], value) for name, value in before.items())


def test_copies_of_a_function_lower_the_rank(data: ViewsDataModule) -> None:
    model = make_module(width=6, hidden=64).model
    with torch.no_grad():
        for value in (model.projector[-1].weight, model.projector[-1].bias):
            value[4:] = value[:2]
    assert fit_ritz(model, data, pairs=PAIRS).rank == 4
    assert model.encode(data.splits.test.images_NCHW).shape == (30, 4)


def test_the_callback_writes_the_order_into_the_checkpoint(few_digits: Path, tmp_path: Path) -> None:
    module = make_module()
    callback = FitRitz(PAIRS, tmp_path / "last.ckpt")
    make_trainer(tmp_path, callbacks=[callback]).fit(module, make_data(few_digits))
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    assert int(state["model.ritz_rank"]) == 4
    assert torch.equal(state["model.ritz_rotation"], module.model.ritz_rotation)


def test_collapse_is_named(data: ViewsDataModule) -> None:
    model = make_module().model
    torch.nn.init.zeros_(model.projector[-1].weight)
    with pytest.raises(InputError, match="collapsed"):
        fit_ritz(model, data, pairs=PAIRS)


def test_networks_that_diverged(data: ViewsDataModule) -> None:
    model = make_module().model
    torch.nn.init.constant_(model.projector[-1].weight, torch.nan)
    with pytest.raises(NonFiniteError, match="diverged; lower lr"):
        fit_ritz(model, data, pairs=PAIRS)
    assert int(model.ritz_rank) == 0


def test_too_few_pairs(data: ViewsDataModule) -> None:
    with pytest.raises(InputError, match="at least 2 pairs, got 1"):
        fit_ritz(make_module().model, data, pairs=1)


def test_the_callback_needs_views() -> None:
    trainer = SimpleNamespace(datamodule=pl.LightningDataModule())
    with pytest.raises(InputError, match=r"FitRitz needs a ViewsDataModule.*got LightningDataModule"):
        FitRitz(PAIRS).on_fit_start(trainer, make_module())  # type: ignore[arg-type]


@pytest.mark.parametrize("every", [1, 50], ids=["seen at its step", "seen at the end"])
def test_a_loss_of_nan_stops_training(few_digits: Path, tmp_path: Path, every: int) -> None:
    module = make_module(lr=1e30, warmup=0.0)
    trainer = make_trainer(tmp_path, 2, callbacks=[FitRitz(PAIRS)], log_every_n_steps=every)
    with pytest.raises(NonFiniteError, match=r"lower lr, raise warmup|diverged; lower lr"):
        trainer.fit(module, make_data(few_digits))
    assert (trainer.global_step < 8) is (every == 1)


def test_a_colour_law_on_grey_images(few_digits: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="grey images"):
        make_trainer(tmp_path).fit(make_module(), make_data(few_digits, laws=[ViewLaw(hue=0.1)]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 16}, r"expects 16x16"),  # a convolution would take them, and see strokes of half the width
        ({"in_chans": 3}, r"have 1 channel\(s\), the model expects 3: set model\.in_chans to 1"),
        (
            {
                "backbone": "vit_tiny_patch16_224",
                "image_size": 16,
                "backbone_options": {"img_size": 16, "patch_size": 4, "depth": 1},
            },
            r"8x8 pixels, the model expects 16x16: set data\.image_size to 16, or model\.image_size .* to 8",
        ),
    ],
)
def test_images_that_do_not_fit_the_model(
    few_digits: Path, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        make_trainer(tmp_path).fit(make_module(**changes), make_data(few_digits))


def test_oblong_images_can_be_made_square(few_digits: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "oblong.npz", images=np.zeros((40, 8, 6), np.uint8))
    message = r"8x6 pixels, the model expects 8x8: set data\.image_size to 8, which makes them square"
    with pytest.raises(InputError, match=message):
        make_trainer(tmp_path).fit(make_module(), make_data(tmp_path / "oblong.npz"))
    data = make_data(tmp_path / "oblong.npz", image_size=8)
    data.setup()
    make_module().check_data(data)


@pytest.mark.parametrize("laws", [None, [ViewLaw(), ViewLaw(affine_prob=0.5)]])
def test_equal_views_are_refused(few_digits: Path, tmp_path: Path, laws: list[ViewLaw] | None) -> None:
    with pytest.raises(InputError, match="all views of an image would be equal"):
        make_trainer(tmp_path).fit(make_module(), make_data(few_digits, laws=laws))


def test_one_law_that_changes_images_is_enough(few_digits: Path) -> None:
    data = make_data(few_digits, laws=[ViewLaw(), ViewLaw(flip=0.1)])
    data.setup()
    make_module().check_data(data)


def test_any_space_of_a_network_holds_a_span(data: ViewsDataModule) -> None:
    model = make_module(width=6, hidden=64).model
    of_codes, of_features = (ritz_of(model, data, pairs=PAIRS, space=space) for space in ("projector", "backbone"))  # type: ignore[arg-type]
    assert int(model.ritz_rank) == 0  # only `fit_ritz` stores it
    assert torch.equal(of_codes.rotation, fit_ritz(model, data, pairs=PAIRS).rotation)
    views = [
        model.backbone(2 * x.flatten(0, 1) - 1).double().chunk(2) for x in data.training_views(3, torch.device("cpu"))
    ]
    a, b = (torch.cat([view[side] for view in views]) for side in (0, 1))
    torch.testing.assert_close(of_features.eigenvalues[:20], rayleigh_ritz(a, b).eigenvalues[:20])


def test_a_trainer_without_the_callback_orders_the_functions_too(
    few_digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FitRitz.__init__, "__defaults__", (PAIRS, None))
    module, data, trainer = make_module(), make_data(few_digits), make_trainer(tmp_path)
    trainer.callbacks = [one for one in trainer.callbacks if not isinstance(one, FitRitz)]  # type: ignore[attr-defined]
    trainer.fit(module, datamodule=data)
    assert module.model.encode(data.splits.test.images_NCHW, dims=1).shape[1] == 1
    assert sum(isinstance(callback, FitRitz) for callback in trainer.callbacks) == 1  # type: ignore[attr-defined]
    given = FitRitz(PAIRS)
    trainer = make_trainer(tmp_path, callbacks=[given])
    trainer.fit(make_module(), datamodule=make_data(few_digits))
    assert [callback for callback in trainer.callbacks if isinstance(callback, FitRitz)] == [given]  # type: ignore[attr-defined]
