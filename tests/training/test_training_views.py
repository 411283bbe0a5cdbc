"""More views, and smaller ones: drawn, trained on, refused; images that stay in the computer's memory."""

from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import BATCH, make_data, make_module, make_trainer

from neigenmaps.data import SmallViews, ViewLaw
from neigenmaps.errors import InputError
from neigenmaps.training import EigenmapModule, FitRitz

LAW = ViewLaw(rotate=10, noise=0.1)
SMALL = SmallViews((ViewLaw(crop_scale=(0.3, 0.6), noise=0.1),), size=6, count=3)


def batch_of(path: Path, **changes: Any) -> dict[str, torch.Tensor]:
    data = make_data(path, **changes)
    data.setup()
    return data.training_batch(0, 1, torch.device("cpu"))


def test_shapes_and_draws(few_digits: Path) -> None:
    two, more = batch_of(few_digits), batch_of(few_digits, n_views=3, small_views=SMALL)
    assert more["views"].shape == (3, BATCH, 1, 8, 8)
    assert more["small_views"].shape == (3, BATCH, 1, 6, 6)
    assert torch.equal(two["images"], more["images"])
    assert "small_views" not in two
    kinds = [*more["small_views"]]
    assert not any(torch.equal(kinds[a], kinds[b]) for a in range(3) for b in range(a))
    # the first of them are drawn as if there were no others
    assert torch.equal(two["views"], batch_of(few_digits, small_views=SMALL)["views"])


def test_what_is_measured_has_two_views(few_digits: Path) -> None:
    data = make_data(few_digits, n_views=4, small_views=SMALL)
    data.setup()
    shown = data.on_after_batch_transfer(next(iter(data.val_dataloader())), 0)
    assert shown["views"].shape[0] == 2
    assert set(shown) == {"images", "views"}
    assert next(data.training_views(1, torch.device("cpu"))).shape[0] == 2


def test_small_views_are_no_larger_than_the_images(few_digits: Path) -> None:
    with pytest.raises(InputError, match="at most 8 pixels, the images' side, got 9"):
        make_data(few_digits, small_views=SmallViews((ViewLaw(flip=0.5),), size=9)).setup()


@pytest.mark.parametrize("changes", [{"n_views": 3}, {"small_views": SMALL}])
def test_training(tmp_path: Path, few_digits: Path, changes: dict[str, Any]) -> None:
    module = make_module()
    before = [parameter.detach().clone() for parameter in module.parameters()]
    make_trainer(tmp_path, callbacks=[FitRitz(100)]).fit(module, datamodule=make_data(few_digits, **changes))
    assert all(torch.isfinite(parameter).all() for parameter in module.parameters())
    assert not any(torch.equal(*pair) for pair in zip(before, module.parameters(), strict=True))
    assert module.model.encode(torch.rand(2, 1, 8, 8)).shape[1] == int(module.model.ritz_rank)


def test_the_step_is_the_loss_over_pairs(few_digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = make_module().double()
    monkeypatch.setattr(EigenmapModule, "log", lambda *given, **named: None)
    batch = {
        name: value.double() for name, value in batch_of(few_digits, small_views=SMALL).items() if name != "images"
    }
    loss = module.training_step(batch, 0)["loss"]
    large, small = (module.views_to_codes(batch[name]) for name in ("views", "small_views"))
    expected = module.objective.over_pairs([*large, *small], (2, 3)).loss
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)


def test_a_backbone_of_one_size_only(tmp_path: Path, few_digits: Path) -> None:
    options = {"img_size": 8, "patch_size": 4, "embed_dim": 12, "depth": 1, "num_heads": 2}
    module = make_module(backbone="vit_tiny_patch16_224", backbone_options=options)
    data = make_data(few_digits, small_views=SMALL)
    data.setup()
    with pytest.raises(InputError, match="does not take images of 6x6 pixels"):
        module.check_data(data)


def test_small_views_of_a_model_in_float64(tmp_path: Path, few_digits: Path) -> None:
    module = make_module().double()
    make_trainer(tmp_path, callbacks=[FitRitz(100)]).fit(module, datamodule=make_data(few_digits, small_views=SMALL))
    assert module.model.ritz_rotation.dtype == torch.float64
    assert module.model.ritz_rank > 0


@pytest.mark.parametrize("wrong", [{"count": 1}, {"size": 0}, {"laws": ()}])
def test_small_views_out_of_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="SmallViews: expected"):
        SmallViews(**{"laws": (LAW,), "size": 6} | wrong)


def test_one_view(few_digits: Path) -> None:
    with pytest.raises(InputError, match="n_views of at least 2, got 16, 2048 and 1"):
        make_data(few_digits, n_views=1)


def test_images_that_stay_are_gathered_where_they_lie(few_digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`meta` stands for a device: row numbers do not go there, as reading them back would wait for it."""
    data = make_data(few_digits)
    data.setup()
    device = torch.device("meta")
    batch = next(iter(data.training_rows(70)))
    moved = data.transfer_batch_to_device(batch, device, 0)
    assert (moved["index"].device.type, moved["device"].type) == ("cpu", "meta")
    images = data._images("train", moved["index"], device)
    assert (images.device.type, tuple(images.shape)) == ("meta", (BATCH, 1, 8, 8))
    resident = make_data(few_digits, resident=True)
    resident.setup()
    assert resident.transfer_batch_to_device(batch, device, 0)["index"].device.type == "meta"


@pytest.mark.gpu
@pytest.mark.parametrize("resident", [True, False])
def test_on_a_gpu_both_ways_show_the_same(few_digits: Path, resident: bool) -> None:
    data = make_data(few_digits, resident=resident)
    data.setup()
    device = torch.device("cuda")
    batch = next(iter(data.training_rows(70)))
    shown = data.on_after_batch_transfer(data.transfer_batch_to_device(batch, device, 0), 0)
    assert shown["views"].is_cuda
    assert torch.equal(shown["images"].cpu(), data.splits.train.images_NCHW[batch["index"]])
