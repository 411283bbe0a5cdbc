"""Under DDP the monitor runs on one process, holds no other up, and says what one process says of the same weights."""

import json
import os
import socket
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import torch.multiprocessing as mp
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from pytorch_lightning.plugins.environments import LightningEnvironment
from pytorch_lightning.strategies import DDPStrategy
from sklearn.datasets import load_digits
from small_runs import make_data, make_module, make_trainer

from neigenmaps.evaluation.alignments import read_alignments
from neigenmaps.evaluation.convergence import ReferencePanel
from neigenmaps.training import AlignmentMonitor
from neigenmaps.training.offline_alignment import align_saved
from neigenmaps.training.saved_models import find_runs

REFERENCES = {"pixels": "pixels", "pca": "pca:8"}
SMALL = {"n_eigenvectors": 8, "n_permutations": 9, "n_neighbors": 8}
WORLD, EPOCHS = 2, 2


def data_file(folder: Path) -> Path:
    bunch = load_digits()
    images = (bunch.images[:140] * (255 / 16)).astype(np.uint8)[:, None]
    np.savez(folder / "digits.npz", images=images, labels=bunch.target[:140])
    return folder / "digits.npz"


class Ends(Callback):
    """Where this process stood when training ended, and that a collective still works there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        summed = trainer.strategy.reduce(torch.tensor(trainer.global_rank + 1.0), reduce_op="sum")
        watched = next(one for one in trainer.callbacks if isinstance(one, AlignmentMonitor))  # type: ignore[attr-defined]
        said = {"steps": trainer.global_step, "sum": float(summed), "alignments": len(watched.alignments)}
        (self.folder / f"rank{trainer.global_rank}.json").write_text(json.dumps(said))


def work(rank: int, port: int, folder: str, background: bool | None, still: float | None) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_RANK": str(rank)}
    torch.set_num_threads(1)
    place = Path(folder)
    keeps = ModelCheckpoint(place, "{epoch}", every_n_epochs=1, save_top_k=-1, save_on_train_epoch_end=True)
    watch = AlignmentMonitor(REFERENCES, **SMALL, background=background, stop_when_still=still)  # type: ignore[arg-type]
    trainer = make_trainer(
        place,
        EPOCHS if still is None else 9,
        devices=WORLD,
        strategy=DDPStrategy(cluster_environment=LightningEnvironment(), process_group_backend="gloo"),
        callbacks=[watch, keeps, Ends(place)],
        enable_checkpointing=True,
    )
    trainer.fit(make_module(), make_data(place / "digits.npz", test_share=0.4))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.ddp
@pytest.mark.slow
def test_two_processes_and_one_say_the_same(tmp_path: Path) -> None:
    data_file(tmp_path)
    mp.spawn(work, args=(free_port(), str(tmp_path), None, None), nprocs=WORLD)
    said = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(WORLD)]
    assert [one["sum"] for one in said] == [3, 3]
    assert said[0]["steps"] == said[1]["steps"] > 0
    assert said[1]["alignments"] == 0  # it watched on the first process alone
    found = read_alignments(tmp_path / "alignment")
    assert [one.epoch for one in found] == [0, 1, 2]

    data = make_data(tmp_path / "digits.npz", test_share=0.4)
    data.setup()
    watch = AlignmentMonitor(REFERENCES, **SMALL)  # type: ignore[arg-type]
    panel = ReferencePanel(watch.references, watch.probe_images(data), watch.settings)
    alone = list(align_saved(panel, find_runs([tmp_path])[tmp_path.name], tmp_path / "alone"))
    assert [one.step for one in alone] == [one.step for one in found[1:]]
    for one, other in zip(alone, found[1:], strict=True):
        expected = other.headlines()
        for name, value in one.headlines().items():
            assert value == pytest.approx(expected[name], abs=1e-6), (one.step, name)


@pytest.mark.ddp
@pytest.mark.slow
def test_all_processes_stop_together(tmp_path: Path) -> None:
    data_file(tmp_path)
    mp.spawn(work, args=(free_port(), str(tmp_path), False, -1.0), nprocs=WORLD)  # any likeness will do
    said = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(WORLD)]
    assert said[0]["steps"] == said[1]["steps"] == 3 * (said[0]["steps"] // 3) < 9 * (said[0]["steps"] // 3)
    assert len(read_alignments(tmp_path / "alignment")) == 4
