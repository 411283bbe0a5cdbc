"""Rows and views follow from (seed, epoch, batch, process) alone."""

from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from small_runs import BATCH, STEPS_PER_EPOCH, make_data
from torch import Tensor

from neigenmaps.errors import InputError, UnknownNameError
from neigenmaps.training import RowLoader, ViewsDataModule
from neigenmaps.training.datamodule import mix


def make_loader(rows: int = 50, batch: int = 8, *, seed: int = 1, epoch: int = 0, **changes: Any) -> RowLoader:
    return RowLoader("train", rows, batch, **{"seed": seed, "shuffle": True, "epoch": lambda: epoch} | changes)


def indices(loader: RowLoader) -> Tensor:
    return torch.cat([batch["index"] for batch in loader])


def equal_batches(a: list[dict[str, Any]], b: list[dict[str, Any]]) -> bool:
    same = [torch.equal(x["index"], y["index"]) and x["seed"] == y["seed"] for x, y in zip(a, b, strict=True)]
    return all(same)


def test_every_row_once_per_epoch() -> None:
    seen = indices(make_loader(rows=48))
    assert torch.equal(seen.sort().values, torch.arange(48))
    assert not torch.equal(seen, torch.arange(48))


def test_an_incomplete_batch_is_dropped() -> None:
    loader = make_loader(rows=50)
    assert len(loader) == 6
    assert [len(batch["index"]) for batch in loader] == [8] * 6
    assert len(indices(loader).unique()) == 48


def test_rows_in_order_when_nothing_is_shuffled() -> None:
    loader = make_loader(rows=20, shuffle=False)
    assert len(loader) == 3
    assert torch.equal(indices(loader), torch.arange(20))
    assert equal_batches(list(loader), list(loader))


def test_order_follows_from_seed_and_epoch() -> None:
    first = list(make_loader())
    assert equal_batches(first, list(make_loader()))
    for other in (make_loader(epoch=1), make_loader(seed=2)):
        batches = list(other)
        assert not torch.equal(indices(make_loader()), torch.cat([batch["index"] for batch in batches]))
        assert not {batch["seed"] for batch in first} & {batch["seed"] for batch in batches}


def test_processes_share_each_global_batch() -> None:
    one = list(make_loader())
    parts = [list(make_loader(rank=rank, world=4)) for rank in range(4)]
    for number, batch in enumerate(one):
        shares = [part[number] for part in parts]
        assert [len(share["index"]) for share in shares] == [2] * 4
        assert torch.equal(torch.cat([share["index"] for share in shares]).sort().values, batch["index"].sort().values)
        assert len({share["seed"] for share in shares}) == 4  # else processes would draw equal views


@pytest.mark.parametrize("done", [1, 3, 5])
def test_an_epoch_resumes_where_it_stopped(done: int) -> None:
    whole = list(make_loader(epoch=7))
    interrupted = make_loader(epoch=7)
    assert equal_batches(list(islice(interrupted, done)), whole[:done])
    resumed = make_loader(epoch=7)
    resumed.load_state_dict(interrupted.state_dict())
    assert equal_batches(list(resumed), whole[done:])
    assert equal_batches(list(resumed), whole)  # the pass after is a whole one


def test_a_finished_epoch_resumes_with_the_next() -> None:
    finished = make_loader()
    list(finished)
    resumed = make_loader(epoch=1)
    resumed.load_state_dict(finished.state_dict())
    assert equal_batches(list(resumed), list(make_loader(epoch=1)))


def test_mixed_seeds_do_not_collide() -> None:
    numbers = {mix(seed, epoch, batch) for seed in range(10) for epoch in range(-1, 10) for batch in range(10)}
    assert len(numbers) == 1100
    assert mix(1, 23) != mix(12, 3)
    assert all(0 <= number < 2**63 for number in numbers)


def views_of(data: ViewsDataModule, epoch: int, number: int) -> dict[str, Tensor]:
    data.trainer = SimpleNamespace(current_epoch=epoch)  # type: ignore[assignment]
    batch = list(data.train_dataloader())[number]
    return data.on_after_batch_transfer(batch, 0)


def test_views_follow_from_seed_epoch_and_batch(few_digits: Path) -> None:
    data = make_data(few_digits)
    data.setup()
    torch.manual_seed(1)
    batch = views_of(data, epoch=2, number=1)
    torch.manual_seed(99)  # the global generator has no say
    again = views_of(data, epoch=2, number=1)
    assert batch["views"].shape == (2, BATCH, 1, 8, 8)
    assert torch.equal(batch["views"], again["views"])
    assert torch.equal(batch["images"], again["images"])
    assert not torch.equal(batch["views"][0], batch["views"][1])
    assert not torch.equal(batch["views"], views_of(data, epoch=3, number=1)["views"])
    other = make_data(few_digits, seed=4)
    other.setup()
    assert not torch.equal(batch["views"], views_of(other, epoch=2, number=1)["views"])


def test_batches_show_the_rows_they_name(few_digits: Path) -> None:
    data = make_data(few_digits, laws=None)  # views are the images themselves
    data.setup()
    loader = data.train_dataloader()
    assert len(loader) == STEPS_PER_EPOCH
    for batch in loader:
        shown = data.on_after_batch_transfer(batch, 0)
        assert torch.equal(shown["images"], data.splits.train.images_NCHW[batch["index"]])
        torch.testing.assert_close(shown["views"][1], shown["images"] / 255.0)


def test_probe(few_digits: Path) -> None:
    data = make_data(few_digits, probe_size=20)
    data.setup()
    assert data.probe_bank == 20
    assert len(data.probe) == 40
    train, test = data.splits
    rows = [0, 4, 7, 11, 15, 18, 22, 25, 29, 33, 36, 40, 44, 47, 51, 54, 58, 62, 65, 69]  # evenly over 0 .. 69
    assert torch.equal(data.probe.images_NCHW[:20], train.images_NCHW[rows])
    assert test.labels_N is not None
    assert data.probe.labels_N is not None
    assert data.probe.labels_N[20] == test.labels_N[0]
    assert data.probe.labels_N[-1] == test.labels_N[-1]
    large = make_data(few_digits)
    large.setup()
    assert (large.probe_bank, len(large.probe)) == (70, 100)  # never a row twice
    shown = [data.on_after_batch_transfer(batch, 0)["images"] for batch in data.val_dataloader()]
    assert torch.equal(torch.cat(shown), data.probe.images_NCHW)


def test_training_views_cover_every_image_in_each_pass(few_digits: Path) -> None:
    data = make_data(few_digits)
    data.setup()
    passes = list(data.training_views(2, torch.device("cpu")))
    assert [tuple(views.shape) for views in passes] == [(2, 70, 1, 8, 8)] * 2
    assert not torch.equal(*passes)
    assert torch.equal(passes[0], next(data.training_views(1, torch.device("cpu"))))


def test_a_batch_larger_than_the_training_set(few_digits: Path) -> None:
    with pytest.raises(InputError, match="batch_size 71 exceeds the 70 training images: lower"):
        make_data(few_digits, batch_size=71).setup()


def test_a_batch_that_processes_cannot_share(few_digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = make_data(few_digits)
    data.setup()
    monkeypatch.setattr("neigenmaps.training.datamodule.process", lambda: (0, 3))
    with pytest.raises(InputError, match="expected a multiple of 3"):
        data.train_dataloader()


@pytest.mark.parametrize("changes", [{"batch_size": 1}, {"probe_size": 1}, {"batch_size": 0}])
def test_sizes_out_of_range(few_digits: Path, changes: dict[str, int]) -> None:
    with pytest.raises(InputError, match="at least 2"):
        make_data(few_digits, **changes)


def test_unknown_data_set() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'digits'"):
        make_data(Path("digit")).setup()
