"""`train.py fit --config configs/cora.yaml` on a small graph of its form: end to end, resumed, refused."""

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from neigenmaps.cli import train
from neigenmaps.errors import CheckpointError, GraphWarning, InputError, NotFittedError
from neigenmaps.features import FeatureSet
from neigenmaps.nn import NestedLowRank
from neigenmaps.training.nodes import NodesDataModule, NodesModule, is_about_nodes
from oracles import graphs as oracle

CONFIG = Path(__file__).parent.parent.parent / "configs" / "cora.yaml"
SMALL = ["--model.in_features=12", "--model.width=8", "--model.hidden=32", "--data.batch_size=60", "--model.lr=1e-2"]
QUIET = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--trainer.logger=false"]


@pytest.fixture(scope="module")
def blocks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 nodes in three blocks; features lean to the block, edges mostly stay in it."""
    rng = np.random.default_rng(0)
    block = np.repeat(np.arange(3), 40)
    upper = np.triu(rng.random((120, 120)) < np.where(block[:, None] == block, 0.2, 0.02), 1)
    features = (rng.random((120, 12)) < np.where(np.arange(12) // 4 == block[:, None], 0.5, 0.2)).astype(np.float32)
    order = rng.permutation(120)
    path = tmp_path_factory.mktemp("graph") / "blocks.npz"
    np.savez(path, edges=np.argwhere(upper), x=features, labels=block, train_idx=order[:60], test_idx=order[60:])
    return path


@pytest.mark.parametrize("rank", [0, 1])
def test_one_process_of_several_tells_what_the_graph_lacks(
    blocks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: int
) -> None:
    with np.load(blocks) as arrays:
        np.savez(tmp_path / "loops.npz", **dict(arrays) | {"edges": np.concatenate([arrays["edges"], [[3, 3]]])})
    monkeypatch.setattr(rank_zero_only, "rank", rank)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        NodesDataModule(str(tmp_path / "loops.npz"), batch_size=60).setup()
    assert [one.category for one in said] == [GraphWarning] * (1 - rank)


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:The dirpath has changed")
def test_nodes_resumed_twice_from_last_steps_do_no_epoch_twice(blocks: Path, tmp_path: Path) -> None:
    def run(name: str, checkpoint: Path | None) -> tuple[NodesModule, int]:
        torch.manual_seed(0)
        module = NodesModule(12, width=4, hidden=8, objective=NestedLowRank("sequential"))
        kept = ModelCheckpoint(tmp_path / name, "{step}", every_n_train_steps=2, save_top_k=-1)  # of 2 an epoch
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        trainer = pl.Trainer(max_epochs=4, accelerator="cpu", callbacks=[kept], default_root_dir=tmp_path, **quiet)
        data = NodesDataModule(str(blocks), batch_size=60)
        trainer.fit(module, data, ckpt_path=checkpoint, weights_only=True)
        return module, trainer.global_step

    whole, steps = run("whole", None)
    run("once", tmp_path / "whole" / "step=2.ckpt")
    twice, steps_of_twice = run("twice", tmp_path / "once" / "step=4.ckpt")
    assert steps_of_twice == steps == 8
    for name, value in whole.network.state_dict().items():
        assert torch.equal(value, twice.network.state_dict()[name]), name


def fit(graph: Path, folder: Path, patch: pytest.MonkeyPatch, *options: str) -> None:
    patch.setattr(sys, "argv", ["train.py"])
    run = [f"--run.root={folder}", f"--data.graph={graph}"]
    train(["fit", "--config", str(CONFIG), *SMALL, *QUIET, *run, *options])


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.parametrize(
    "source",
    [
        ["--data.source=kernel", "--trainer.max_epochs=80"],  # an epoch is 2 batches of nodes, or 7 to 9 of edges
        ["--data.source=pairs", "--data.walk_steps=1", "--trainer.max_epochs=15"],
    ],
)
def test_a_run_from_configuration_to_codes(
    blocks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], source: list[str]
) -> None:
    fit(blocks, tmp_path, monkeypatch, "--run.version=v", *source)
    run = tmp_path / "cora" / "v"
    summary = json.loads((run / "summary.json").read_text())
    assert summary["linear_probe"]["2"] >= 0.8  # two functions tell three blocks apart
    assert (np.diff(summary["eigenvalues"]) <= 0).all()
    assert "linear probe, first    2 numbers" in capsys.readouterr().out
    features = FeatureSet.load(run / "features" / "nodes.safetensors")
    assert features.embeddings_NF.shape == (120, summary["rank"])
    assert (run / "provenance.json").exists()
    assert (run / "last.ckpt").exists()


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_a_resumed_run_equals_one_that_was_not_stopped(
    blocks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = ["--model.drop_features=0.2", "--run.save_every_n_epochs=1", "--run.keep_every_n_epochs=2"]
    fit(blocks, tmp_path, monkeypatch, "--run.version=whole", "--trainer.max_epochs=4", *steps)
    half = tmp_path / "cora" / "whole" / "epoch=1.ckpt"
    fit(blocks, tmp_path, monkeypatch, "--run.version=rest", "--trainer.max_epochs=4", *steps, f"--ckpt_path={half}")
    whole, rest = (torch.load(tmp_path / "cora" / name / "last.ckpt", weights_only=True) for name in ("whole", "rest"))
    for name, value in whole["state_dict"].items():
        assert torch.equal(value, rest["state_dict"][name]), name


def test_what_does_not_fit_is_said(
    blocks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for options, words in (
        (["--model.in_features=1433"], "set model.in_features to 12"),
        (["--data.batch_size=121"], "exceeds the 120 nodes: lower data.batch_size"),
        (["--data.batch_size=100000", "--data.source=pairs"], "edges: lower data.batch_size"),
        (["--data.own=-1"], "own as a number of at least 0"),
        (["--model.objective.init_args.nesting=joint"], "set data.source to pairs"),
        ([f"--data.graph={tmp_path / 'none.npz'}"], "npz file"),
    ):
        with pytest.raises(SystemExit, match=words):
            fit(blocks, tmp_path, monkeypatch, *options)
    np.savez(tmp_path / "bare.npz", edges=np.array([[0, 1], [1, 2]]))
    with pytest.raises(SystemExit, match="add x, one row for every node"):
        fit(tmp_path / "bare.npz", tmp_path, monkeypatch)
    with pytest.raises(SystemExit):
        fit(blocks, tmp_path, monkeypatch, "--model.widht=3")
    assert "Did you mean 'model.width'?" in capsys.readouterr().err


def test_which_configurations_are_about_nodes(tmp_path: Path) -> None:
    assert is_about_nodes(["fit", "--config", str(CONFIG)])
    assert is_about_nodes(["fit", f"--config={CONFIG}"])
    assert is_about_nodes(["fit", "--data.graph", "x.npz"])
    assert not is_about_nodes(["fit", "--config", str(CONFIG.parent / "digits.yaml")])
    (tmp_path / "broken.yaml").write_text("data: [")
    assert not is_about_nodes(["fit", "--config", str(tmp_path / "broken.yaml"), "--config", "none.yaml"])


def test_refusals_of_the_parts(blocks: Path) -> None:
    with pytest.raises(InputError, match="batch_size"):
        NodesDataModule(str(blocks), batch_size=1)
    with pytest.raises(InputError, match="warmup"):
        NodesModule(12, warmup=1.0)
    module = NodesModule(12, width=4, hidden=8)
    with pytest.raises(NotFittedError, match="order"):
        module.encode(torch.zeros(2, 12))
    with pytest.raises(CheckpointError, match="another model"):
        module.check_checkpoint({"model_config": {}})


@pytest.mark.parametrize("source", ["kernel", "pairs"])
def test_batches_depend_on_seed_epoch_and_batch_alone(blocks: Path, source: Any) -> None:
    def views(seed: int) -> list[Any]:
        data = NodesDataModule(str(blocks), batch_size=32, source=source, seed=seed)
        data.setup()
        return [data.on_after_batch_transfer(batch, 0)["views"] for batch in data.train_dataloader()]

    for one, same, other in zip(views(0), views(0), views(1), strict=True):
        assert torch.equal(one, same)
        assert not torch.equal(one, other)


def test_a_batch_has_the_kernel_between_its_nodes(blocks: Path) -> None:
    data = NodesDataModule(str(blocks), batch_size=50, walk_steps=1, own=1.0, rarity=0.0)
    data.setup()
    batch = next(iter(data.train_dataloader()))
    made = data.on_after_batch_transfer(batch, 0)
    x = data.rows.numpy()
    index = batch["index"].numpy()
    torch.testing.assert_close(made["views"], data.rows[batch["index"]][None])
    whole = oracle.node_kernel(data.graph.adjacency.toarray(), x, 1, 1.0, 0.0)
    np.testing.assert_allclose(made["kernel"], whole[np.ix_(index, index)], atol=1e-3)


def test_codes_are_scaled_as_asked() -> None:
    rows = torch.randn(9, 12, generator=torch.Generator().manual_seed(0))
    codes = {}
    for scaling in ("unit", "sqrt_eigenvalue", "eigenvalue"):
        torch.manual_seed(0)
        module = NodesModule(12, width=3, hidden=8, scaling=scaling)
        module.ritz_rotation.copy_(torch.eye(3))
        module.eigenvalues.copy_(torch.tensor([1.0, 0.25, 0.04]))
        codes[scaling] = module.encode(rows)
    torch.testing.assert_close(codes["sqrt_eigenvalue"], codes["unit"] * torch.tensor([1.0, 0.5, 0.2]))
    torch.testing.assert_close(codes["eigenvalue"], codes["unit"] * torch.tensor([1.0, 0.25, 0.04]))
