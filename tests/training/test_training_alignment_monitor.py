"""AlignmentMonitor: on schedule, equal to the function it calls, silent in training, taken up again after a resume."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger
from safetensors import SafetensorError
from sklearn.datasets import load_digits
from small_runs import make_data, make_module, make_trainer

from neigenmaps.alignment import storage
from neigenmaps.errors import AlignmentWarning, InputError, NonFiniteError
from neigenmaps.evaluation.alignments import read_alignments
from neigenmaps.evaluation.convergence import AlignmentSettings, ReferencePanel
from neigenmaps.evaluation.references import parse_reference
from neigenmaps.training import AlignmentMonitor, EigenmapModule, alignment_monitor

REFERENCES = {"pixels": "pixels", "pca": "pca:8"}
SMALL = {"n_eigenvectors": 8, "n_permutations": 9, "n_neighbors": 8}


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    bunch = load_digits()
    images = (bunch.images[:140] * (255 / 16)).astype(np.uint8)[:, None]
    path = tmp_path_factory.mktemp("data") / "digits.npz"
    np.savez(path, images=images, labels=bunch.target[:140])
    return path


def run(
    digits: Path, folder: Path, monitor: AlignmentMonitor | None, epochs: int = 3, **changes: object
) -> tuple[EigenmapModule, pl.Trainer]:
    module = make_module()
    trainer = make_trainer(folder, epochs, callbacks=[] if monitor is None else [monitor], **changes)
    trainer.fit(module, make_data(digits, test_share=0.4))
    return module, trainer


def monitor(**changes: object) -> AlignmentMonitor:
    return AlignmentMonitor(**{"references": REFERENCES, **SMALL, **changes})  # type: ignore[arg-type]


def test_every_epoch_from_the_untrained_network_on(digits: Path, tmp_path: Path) -> None:
    run(digits, tmp_path, monitor(), logger=CSVLogger(tmp_path, name="", version=""), log_every_n_steps=1)
    found = read_alignments(tmp_path / "alignment")
    steps = [epoch * len_epoch(digits) for epoch in range(4)]
    assert [one.step for one in found] == steps
    assert [one.epoch for one in found] == [0, 1, 2, 3]
    with (tmp_path / "metrics.csv").open() as file:
        rows = {int(row["step"]): row for row in csv.DictReader(file) if row.get("align/pixels/lfm")}
    assert sorted(rows) == steps
    for one in found:
        for name, value in one.headlines().items():
            assert float(rows[one.step][f"align/{name}"]) == pytest.approx(value, abs=1e-6)
    assert 0 < float(rows[steps[-1]]["align/overhead"]) < 1


def len_epoch(digits: Path) -> int:
    data = make_data(digits, test_share=0.4)
    data.setup()
    return len(data.splits.train) // data.batch_size


def test_it_measures_what_the_function_measures(digits: Path, tmp_path: Path) -> None:
    module, trainer = run(digits, tmp_path, monitor(layers=("backbone", "projector")))
    data = trainer.datamodule  # type: ignore[attr-defined]
    panel = ReferencePanel(
        {name: parse_reference(text) for name, text in REFERENCES.items()},
        data.splits.test,
        AlignmentSettings(n_eigenvectors=8, n_permutations=9, n_neighbors=8),
    )
    layers = {
        name: module.model.encode(data.splits.test.images_NCHW, space=name)  # type: ignore[arg-type]
        for name in ("backbone", "projector")
    }
    expected, last = panel.align(layers).headlines(), read_alignments(tmp_path / "alignment")[-1].headlines()
    for name, value in expected.items():
        assert last[name] == pytest.approx(value, abs=1e-6), name


def test_training_is_the_same_to_the_bit_with_it(digits: Path, tmp_path: Path) -> None:
    alone, _ = run(digits, tmp_path / "a", None)
    for background in (False, True):
        watched, _ = run(digits, tmp_path / f"b{background}", monitor(background=background))
        for (name, a), b in zip(alone.state_dict().items(), watched.state_dict().values(), strict=True):
            assert torch.equal(a, b), name


@pytest.mark.slow
def test_the_background_thread_gives_the_same_numbers(digits: Path, tmp_path: Path) -> None:
    for background in (False, True):
        run(digits, tmp_path / str(background), monitor(background=background))
    here, there = (read_alignments(tmp_path / name / "alignment") for name in ("False", "True"))
    assert [one.headlines() for one in here] == [one.headlines() for one in there]


def test_by_steps(digits: Path, tmp_path: Path) -> None:
    run(digits, tmp_path, monitor(every_n_steps=2), epochs=1)
    steps = [one.step for one in read_alignments(tmp_path / "alignment")]
    last = len_epoch(digits)
    assert steps == sorted({*range(0, last + 1, 2), last})


@pytest.mark.filterwarnings("ignore:The dirpath has changed")  # a resumed run has a folder of its own
def test_a_resumed_run_continues_the_curves(digits: Path, tmp_path: Path) -> None:
    for name, checkpoint in (("whole", None), ("rest", tmp_path / "whole" / "epoch=1.ckpt")):
        keeps = ModelCheckpoint(
            tmp_path / name, "{epoch}", every_n_epochs=2, save_top_k=-1, save_on_train_epoch_end=True
        )
        trainer = make_trainer(tmp_path / name, 4, callbacks=[monitor(), keeps], enable_checkpointing=True)
        trainer.fit(make_module(), make_data(digits, test_share=0.4), ckpt_path=checkpoint, weights_only=True)
    expected, found = (read_alignments(tmp_path / name / "alignment") for name in ("whole", "rest"))
    assert [one.step for one in found] == [one.step for one in expected] == [0, 5, 10, 15, 20]
    assert [one.headlines() for one in found] == [one.headlines() for one in expected]


def test_it_ends_training_when_nothing_moves(digits: Path, tmp_path: Path) -> None:
    still = monitor(stop_when_still=-1.0)  # any likeness will do
    _, trainer = run(digits, tmp_path, still, epochs=9)
    assert trainer.current_epoch == 3


def test_probe_images_that_are_trained_on(digits: Path, tmp_path: Path) -> None:
    bunch = np.load(digits)
    twice = {name: np.concatenate([bunch[name], bunch[name]]) for name in ("images", "labels")}
    np.savez(tmp_path / "twice.npz", **twice)
    with pytest.warns(AlignmentWarning, match="probe images are trained on"):
        run(tmp_path / "twice.npz", tmp_path, monitor(), epochs=1)


def test_a_fall_of_the_alignment_is_said(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    embed, passes = alignment_monitor.embed_layers, iter(range(9))

    def breaks(*arguments: Any) -> dict[str, torch.Tensor]:
        rows = embed(*arguments)["backbone"]
        return {
            "backbone": rows
            if next(passes) < 2
            else torch.randn(rows.shape, generator=torch.Generator().manual_seed(0))
        }

    monkeypatch.setattr(alignment_monitor, "embed_layers", breaks)
    with pytest.warns(AlignmentWarning, match=r"fell from 0\.\d\d to -?0\.\d\d at step 10"):
        run(digits, tmp_path, monitor(), epochs=2)


def test_a_collapse_is_said_and_training_goes_on(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alignment_monitor, "embed_layers", lambda *_: {"backbone": torch.ones(56, 5)})
    with pytest.warns(AlignmentWarning, match=r"aligned at step \d+, perhaps the representation has collapsed"):
        _, trainer = run(digits, tmp_path, monitor(), epochs=2)
    assert trainer.current_epoch == 2


def test_a_full_disk_costs_the_file_not_the_run(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file, room = storage.save_file, iter([True])  # for one file

    def fill(tensors: dict, path: Path, **named: Any) -> None:
        if not next(room, False):  # what a disk of 64 kB gave
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
        save_file(tensors, path, **named)

    monkeypatch.setattr(storage, "save_file", fill)
    watch = monitor()
    with pytest.warns(AlignmentWarning, match=r"could not be written .*No space left.*training goes on"):
        _, trainer = run(digits, tmp_path, watch, epochs=2)
    assert trainer.current_epoch == 2
    assert [one.step for one in watch.alignments] == [0, 5, 10]
    assert [path.name for path in (tmp_path / "alignment").iterdir()] == ["step=00000000.safetensors"]


@pytest.mark.slow
def test_earlier_checkpoints_with_other_references_are_not_taken_up(digits: Path, tmp_path: Path) -> None:
    first = monitor()
    run(digits, tmp_path, first, epochs=1)
    other = monitor(references={"pca": "pca:8"})
    other.load_state_dict(first.state_dict())
    run(digits, tmp_path / "again", other, epochs=1)
    assert [one.step for one in other.alignments] == [0, 5]
    assert all(set(one.values["backbone"]) <= {"pca", "previous"} for one in other.alignments)


def test_not_a_number_stops_with_a_diagnosis(digits: Path, tmp_path: Path) -> None:
    module = make_module()
    with torch.no_grad():
        module.model.backbone.blocks[0].weight.fill_(float("nan"))  # type: ignore[index, union-attr, operator]
    with pytest.raises(NonFiniteError, match="probe set at step 0 \\(backbone\\)"):
        make_trainer(tmp_path, 1, callbacks=[monitor()]).fit(module, make_data(digits, test_share=0.4))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"every_n_epochs": 1, "every_n_steps": 1}, "got both"),
        ({"every_n_epochs": 0}, "at least 1"),
        ({"layers": ()}, "at least one layer"),
        ({"references": {"a": "nonsense"}}, "expected a reference"),
        ({"references": {}}, "at least one reference"),
    ],
)
def test_bad_arguments(digits: Path, tmp_path: Path, changes: dict, said: str) -> None:
    with pytest.raises(InputError, match=said):
        run(digits, tmp_path, monitor(**changes), epochs=1)
