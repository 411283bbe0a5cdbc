"""What the callbacks log equals what the same functions give by hand; they share one pass and never write into training."""

import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger
from small_runs import make_data, make_module, make_trainer
from torch import Tensor

from neigenmaps.errors import IdentifiabilityWarning, InputError
from neigenmaps.evaluation import knn_accuracy
from neigenmaps.nn import NeuralEigenmap, PaperNeuralEigenmap
from neigenmaps.training import EigenmapModule, OnlineKNN, SpectrumMonitor, ViewsDataModule


def fit(
    module: EigenmapModule, data: ViewsDataModule, folder: Path, callbacks: list[Any], **changes: Any
) -> dict[str, Tensor]:
    trainer = make_trainer(folder, callbacks=callbacks, limit_val_batches=1.0, **changes)
    trainer.fit(module, data)
    return dict(trainer.callback_metrics)


@pytest.fixture
def trained(few_digits: Path, tmp_path: Path) -> tuple[EigenmapModule, ViewsDataModule, dict[str, Tensor]]:
    module, data = make_module(), make_data(few_digits)
    metrics = fit(module, data, tmp_path, [OnlineKNN([1, 3], n_neighbors=5), SpectrumMonitor()])
    return module, data, metrics


def test_online_knn(trained: tuple[EigenmapModule, ViewsDataModule, dict[str, Tensor]]) -> None:
    module, data, metrics = trained
    bank, queries = (module.model.encode(store.images_NCHW, space="projector") for store in data.splits)
    bank, queries = bank - bank.mean(0), queries - bank.mean(0)
    assert data.splits.train.labels_N is not None
    assert data.splits.test.labels_N is not None
    for name, m in (("1", 1), ("3", 3), ("full", 4)):
        labels = data.splits.train.labels_N, data.splits.test.labels_N
        expected = knn_accuracy(bank[:, :m], labels[0], queries[:, :m], labels[1], n_neighbors=5)
        assert metrics[f"eval/knn_{name}"].item() == pytest.approx(expected)


def test_spectrum_monitor(trained: tuple[EigenmapModule, ViewsDataModule, dict[str, Tensor]]) -> None:
    module, data, metrics = trained
    views = [data.on_after_batch_transfer(batch, 0)["views"] for batch in data.val_dataloader()]
    model = module.model.eval()
    with torch.no_grad():
        a, b = (model(torch.cat([view[side] for view in views])).codes.double().numpy() for side in (0, 1))
    mean = (a.mean(0) + b.mean(0)) / 2
    a, b = a - mean, b - mean
    second, cross = (a.T @ a + b.T @ b) / (2 * len(a)), (a.T @ b + b.T @ a) / (2 * len(a))
    eigenvalues = cross.diagonal() / second.diagonal()
    correlation = second / np.sqrt(np.outer(second.diagonal(), second.diagonal()))
    off = correlation[~np.eye(4, dtype=bool)]
    assert metrics["spectrum/mean_eigenvalue"].item() == pytest.approx(eigenvalues.mean(), rel=1e-5)
    assert metrics["spectrum/offdiagonal_rms"].item() == pytest.approx(np.sqrt((off**2).mean()), rel=1e-5)
    ordered = np.mean(eigenvalues[1:] <= eigenvalues[:-1] + 0.01)
    assert metrics["spectrum/ordered"].item() == pytest.approx(ordered)
    share = eigenvalues / eigenvalues.sum()
    assert metrics["spectrum/effective_rank"].item() == pytest.approx(np.exp(-(share * np.log(share)).sum()), rel=1e-4)
    assert 1 <= metrics["spectrum/distinct"].item() <= 4


def test_copies_are_counted(few_digits: Path, tmp_path: Path) -> None:
    module = make_module(lr=1e-12)
    with torch.no_grad():
        for value in (module.model.projector[-1].weight, module.model.projector[-1].bias):
            value[:] = value[:1].clone()
    metrics = fit(module, make_data(few_digits), tmp_path, [SpectrumMonitor()])
    assert metrics["spectrum/distinct"].item() == 1
    assert metrics["spectrum/offdiagonal_rms"].item() == pytest.approx(1, abs=1e-4)


def test_both_callbacks_share_one_pass(few_digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("neigenmaps.training.datamodule.CHUNK", 40)
    monkeypatch.setattr(
        "neigenmaps.training.ritz.fit_ritz", lambda *model, **pairs: None
    )  # its passes are not of callbacks
    module, calls = make_module(), []
    module.model.register_forward_hook(lambda model, inputs, output: calls.append(model.training))
    fit(module, make_data(few_digits), tmp_path, [OnlineKNN([2]), SpectrumMonitor()])
    assert calls.count(True) == 4  # training steps
    assert calls.count(False) == 2 * 3  # 100 rows in chunks of 40, clean images and views


def test_callbacks_do_not_change_training(few_digits: Path, tmp_path: Path) -> None:
    watched, alone = make_module(), make_module()
    fit(watched, make_data(few_digits), tmp_path, [OnlineKNN([2]), SpectrumMonitor()], max_epochs=2)
    make_trainer(tmp_path, 2).fit(alone, make_data(few_digits))
    states = watched.state_dict(), alone.state_dict()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_values_reach_the_log_file(few_digits: Path, tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    fit(
        make_module(),
        make_data(few_digits),
        tmp_path,
        [OnlineKNN([2]), SpectrumMonitor()],
        logger=logger,
        log_every_n_steps=1,
    )
    header = (Path(logger.log_dir) / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {"train/loss", "train/alignment", "eval/knn_2", "eval/knn_full", "spectrum/distinct"} <= set(header)


def test_part_of_the_probe_gives_no_accuracy(few_digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("neigenmaps.training.datamodule.CHUNK", 40)
    trainer = make_trainer(tmp_path, callbacks=[OnlineKNN([2]), SpectrumMonitor()], limit_val_batches=1)
    trainer.fit(make_module(), make_data(few_digits))
    assert not [name for name in trainer.callback_metrics if name.startswith("eval/")]
    assert "spectrum/distinct" in trainer.callback_metrics


def test_code_lengths_beyond_the_width_are_left_to_the_full_code(few_digits: Path, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"no code lengths \[5, 9\], as the code has 4 numbers"):
        metrics = fit(make_module(), make_data(few_digits), tmp_path, [OnlineKNN([5, 3, 4, 9])])
    assert {name for name in metrics if name.startswith("eval/")} == {"eval/knn_3", "eval/knn_full"}


@pytest.mark.parametrize("dims", [(0,), (2, -1)])
def test_code_lengths_out_of_range(dims: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="at least 1, got"):
        OnlineKNN(dims)


def test_images_without_labels(few_digits: Path, tmp_path: Path) -> None:
    arrays = np.load(few_digits)
    np.savez(tmp_path / "bare.npz", x_train=arrays["x_train"], x_test=arrays["x_test"])
    with pytest.warns(UserWarning, match="OnlineKNN: these images have no labels"):
        metrics = fit(make_module(), make_data(tmp_path / "bare.npz"), tmp_path, [OnlineKNN([2]), SpectrumMonitor()])
    assert not [name for name in metrics if name.startswith("eval/")]
    assert "spectrum/distinct" in metrics


def test_online_knn_needs_views() -> None:
    trainer = SimpleNamespace(datamodule=pl.LightningDataModule())
    with pytest.raises(InputError, match="OnlineKNN needs a ViewsDataModule, got LightningDataModule"):
        OnlineKNN().setup(trainer, make_module(), "fit")  # type: ignore[arg-type]


def warnings_of(few_digits: Path, folder: Path, objective: Any, **changes: Any) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", IdentifiabilityWarning)
        fit(
            make_module(objective=objective, **changes),
            make_data(few_digits),
            folder,
            [SpectrumMonitor()],
            max_epochs=3,
        )
    return [str(entry.message) for entry in caught if issubclass(entry.category, IdentifiabilityWarning)]


def test_the_paper_objective_is_doubted_once(few_digits: Path, tmp_path: Path) -> None:
    spoken = warnings_of(few_digits, tmp_path, PaperNeuralEigenmap(alpha=1e-4))
    assert len(spoken) == 1
    assert "cannot separate" in spoken[0]
    assert "nested low-rank" in spoken[0]


def test_doubts_before_training(few_digits: Path, tmp_path: Path) -> None:
    spoken = warnings_of(few_digits, tmp_path, NeuralEigenmap(weighting="adaptive"), width=8)
    assert len(spoken) == 1
    assert "above 64" in spoken[0]
    spoken = warnings_of(few_digits, tmp_path, None, width=17)
    assert len(spoken) == 1
    assert "17 functions from a batch of 16" in spoken[0]


def test_the_default_is_not_doubted(few_digits: Path, tmp_path: Path) -> None:
    assert warnings_of(few_digits, tmp_path, None) == []
