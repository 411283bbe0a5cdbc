"""`neigenmaps export`: what it writes, faiss, NumPy and a database's query read; every answer equals the index's own."""

import json
import sqlite3
from pathlib import Path

import faiss
import numpy as np
import pytest

from neigenmaps.__main__ import main
from neigenmaps.commands import export
from neigenmaps.errors import InputError
from neigenmaps.nn import NeuralEigenmapModel
from neigenmaps.retrieval import CodeStore, TruncatedIndex
from neigenmaps.retrieval.export import export_faiss, export_numpy

CODES = np.random.default_rng(0).standard_normal((40, 12), dtype=np.float32)
NAMES = [f"é/{number:02d}.png" for number in range(40)]


@pytest.fixture
def store() -> CodeStore:
    store = CodeStore(CODES, ids=NAMES, eigenvalues=np.linspace(1, 0.1, 12), fingerprint="a")
    store.remove([NAMES[5]])
    return store


def test_a_model_goes_to_all_that_fit(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "can_export_onnx", lambda: False)  # tests/nn tries it
    main(["export", str(finished), "--out", str(tmp_path / "e"), "--dims", "2"])
    assert {path.name for path in (tmp_path / "e").iterdir()} == {"model", "timm"}
    ours, theirs = (
        NeuralEigenmapModel.from_pretrained(path) for path in (finished / "model", tmp_path / "e" / "model")
    )
    assert all((value == theirs.state_dict()[name]).all() for name, value in ours.state_dict().items())
    printed = capsys.readouterr().out
    assert str(tmp_path / "e" / "timm") in printed
    assert "pip install 'neigenmaps[export]'" in printed


@pytest.mark.parametrize("m", [4, 12])
def test_faiss_file_answers_like_the_index(tmp_path: Path, store: CodeStore, m: int) -> None:
    export_faiss(store, tmp_path, truncate_dim=m)
    index, names = faiss.read_index(str(tmp_path / "codes.faiss")), json.loads((tmp_path / "ids.json").read_text())
    queries = CODES[:3, :m] / np.linalg.norm(CODES[:3, :m], axis=1, keepdims=True)
    scores, rows = index.search(queries, 5)
    own = TruncatedIndex(store, m).search(CODES[:3], 5)
    np.testing.assert_allclose(scores, own.scores, rtol=0, atol=1e-5)
    assert [[names[row] for row in some] for some in rows] == own.ids.tolist()


def test_numpy_file_reads_without_pickle(tmp_path: Path, store: CodeStore) -> None:
    export_numpy(store, tmp_path / "codes.npz", truncate_dim=7)
    with np.load(tmp_path / "codes.npz", allow_pickle=False) as file:
        assert sorted(file.files) == ["codes", "eigenvalues", "ids"]
        np.testing.assert_array_equal(file["codes"], np.delete(CODES, 5, 0)[:, :7])
        assert file["ids"].tolist() == NAMES[:5] + NAMES[6:]
        assert len(file["eigenvalues"]) == 7
    assert [path.name for path in tmp_path.iterdir()] == ["codes.npz"]


def test_the_recipe_for_a_database(tmp_path: Path, store: CodeStore) -> None:
    """The README's, with SQLite in the place of PostgreSQL: its operator <=> is the cosine distance."""
    store.save(tmp_path / "c.safetensors")
    main(["export", str(tmp_path / "c.safetensors"), "--out", str(tmp_path), "--formats", "numpy", "--dims", "8"])
    with np.load(tmp_path / "codes.npz") as file:
        rows = [(name, str(code.tolist())) for name, code in zip(file["ids"].tolist(), file["codes"], strict=True)]

    def distance(a: str, b: str) -> float:
        x, y = np.array(json.loads(a)), np.array(json.loads(b))
        return float(1 - x @ y / np.linalg.norm(x) / np.linalg.norm(y))

    database = sqlite3.connect(":memory:")
    database.create_function("distance", 2, distance)
    database.execute("CREATE TABLE images (name TEXT PRIMARY KEY, code TEXT)")
    database.executemany("INSERT INTO images VALUES (?, ?)", rows)
    query = str(CODES[3, :8].tolist())
    found = database.execute("SELECT name FROM images ORDER BY distance(code, ?) LIMIT 6", [query]).fetchall()
    assert [name for (name,) in found] == TruncatedIndex(store, 8).search(CODES[3], 6).ids.tolist()


def test_mistakes_are_answered(tmp_path: Path, store: CodeStore) -> None:
    store.save(tmp_path / "c.safetensors")
    NeuralEigenmapModel(width=4, hidden=8).save_pretrained(tmp_path / "raw")
    out = ["--out", str(tmp_path / "e")]
    for line, message in (
        (["c.safetensors", *out, "--formats", "onnx"], "holds codes, which go to faiss, numpy, not to onnx"),
        (["raw", *out, "--formats", "faiss"], "holds a model, which go to model, timm, onnx"),
        (["c.safetensors", *out, "--dims", "13"], "1 <= truncate_dim <= 12"),
        (["raw", *out, "--formats", "onnx"], "not been put in order"),
        (["absent", *out], "expected a run folder"),
    ):
        with pytest.raises(SystemExit, match=message):
            main(["export", str(tmp_path / line[0]), *line[1:]])
    assert not (tmp_path / "e").exists()
    store.remove(NAMES[:5] + NAMES[6:])
    with pytest.raises(InputError, match="every row has been removed"):
        export_faiss(store, tmp_path / "e")
