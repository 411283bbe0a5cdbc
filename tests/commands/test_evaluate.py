"""`neigenmaps evaluate`: the numbers are those of the functions it calls, in table, picture and JSON; mistakes are answered."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from neigenmaps.__main__ import main
from neigenmaps.data import load_splits
from neigenmaps.data.rows import store_with_channels
from neigenmaps.evaluation import linear_probe_accuracy, truncation_curve
from neigenmaps.evaluation.comparison import OURS_PCA, RANDOM, RITZ, compare_rotations, readings
from neigenmaps.functional.ranking import mean_average_precision
from neigenmaps.nn import NeuralEigenmapModel


def test_numbers_are_those_of_the_functions(
    finished: Path, few_digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["evaluate", str(finished), str(few_digits), "--out", str(tmp_path / "e"), "-k", "5"])
    printed = capsys.readouterr().out
    record = json.loads((tmp_path / "e" / "evaluation.json").read_text())
    splits = load_splits(str(few_digits))
    model = NeuralEigenmapModel.from_pretrained(finished / "model")
    bank, queries = (model.encode(store.images_NCHW).cpu() for store in splits)
    labels, query_labels = (store.labels_N for store in splits)
    ours = record["by_length"][RITZ][0]
    curve = truncation_curve(bank, labels, queries, query_labels, dims=ours["dims"])
    for name in ("knn_accuracy", "retrieval_map"):
        np.testing.assert_allclose(ours[name], getattr(curve, name), rtol=1e-4)
    probe = linear_probe_accuracy(bank[:, :2], labels, queries[:, :2], query_labels)
    assert ours["linear_probe"][0] == pytest.approx(probe)
    full = record["ours"][str(bank.shape[1])]
    assert full["k"] == 5
    assert full["mean_average_precision"] == pytest.approx(
        mean_average_precision(queries, bank, query_labels, labels), rel=1e-4
    )
    assert len(record["by_length"][RANDOM]) == 5
    assert "linear probe, %" in printed
    assert "NDCG@k" in printed
    assert (tmp_path / "e" / "evaluation.png").stat().st_size > 10_000
    assert OURS_PCA in (tmp_path / "e" / "evaluation.md").read_text()


def test_each_data_set_has_its_folder(
    finished: Path,
    few_digits: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        shutil.copy(few_digits, f"{name}.npz")
        main(["evaluate", str(finished), f"{name}.npz", "--max-bank=30", "--max-queries=20"])
    assert "in place of" not in capsys.readouterr().out
    for name in ("a", "b"):
        record = json.loads(Path("evaluation", name, "evaluation.json").read_text())
        assert f"{name}.npz" in record["data"]["train"]
    main(["evaluate", str(finished), "a.npz", "--max-bank=30", "--max-queries=20"])
    assert "evaluation/a (evaluation.json, .md, .png, in place of earlier ones)" in capsys.readouterr().out


def test_rotations_agree_where_nothing_is_cut(finished: Path, few_digits: Path) -> None:
    """A rotation changes no cosine, so that at full length PCA and the outputs as trained retrieve alike."""
    splits = load_splits(str(few_digits))
    model = NeuralEigenmapModel.from_pretrained(finished / "model")
    train, test = (model.encode(store.images_NCHW, space="projector") for store in splits)
    curves = compare_rotations(readings(model, splits, (train, test)), n_draws=2, max_probed=30)
    a, b = curves["ours, as trained"][0], curves[OURS_PCA][0]
    assert a.dims[-1] == b.dims[-1]
    assert a.retrieval_map[-1] == pytest.approx(b.retrieval_map[-1], rel=1e-4)
    generator = torch.Generator().manual_seed(0)
    for drawn in curves[RANDOM]:
        order = torch.randperm(train.shape[1], generator=generator)[: drawn.dims[0]]
        bank, queries = ((part - train.mean(0))[:, order] for part in (train, test))
        expected = mean_average_precision(queries, bank, splits.test.labels_N, splits.train.labels_N)
        assert drawn.retrieval_map[0] == pytest.approx(expected, rel=1e-4)


def test_mistakes_are_answered(finished: Path, few_digits: Path, tmp_path: Path) -> None:
    with np.load(few_digits) as file:
        np.savez(tmp_path / "bare.npz", images=file["x_train"])
    out = ["--out", str(tmp_path / "e")]
    for line, message in (
        ([str(tmp_path / "bare.npz"), *out], "needs labels"),
        ([str(few_digits), *out, "-k", "71"], "1 <= k <= 70"),
        (["digitz", *out], "did you mean 'digits'"),
    ):
        with pytest.raises(SystemExit, match=message):
            main(["evaluate", str(finished), *line])
    assert not (tmp_path / "e").exists()
    NeuralEigenmapModel(width=4, hidden=8).save_pretrained(tmp_path / "raw")
    with pytest.raises(SystemExit, match="not been put in order"):
        main(["evaluate", str(tmp_path / "raw"), str(few_digits), *out])


def test_a_store_changes_its_channels_only_when_it_must() -> None:
    grey = load_splits("digits").test
    assert store_with_channels(grey, 1) is grey
    colour = store_with_channels(grey, 3)
    assert colour.images_NCHW.shape == (397, 3, 8, 8)
    assert (store_with_channels(colour, 1).images_NCHW == grey.images_NCHW).all()
