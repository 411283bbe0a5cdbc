"""Nodes on two gloo processes: a batch is that of all processes, and so are its kernel, its gradient and the order at the end."""

import os
import socket
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import torch.multiprocessing as mp
from pytorch_lightning.plugins.environments import LightningEnvironment
from pytorch_lightning.strategies import DDPStrategy

from neigenmaps.nn import NestedLowRank
from neigenmaps.training.nodes import NodesDataModule, NodesModule, SolveNodes

WORLD, NODES, FEATURES = 2, 60, 9


def train(folder: Path, batch_norm: bool, **settings: object) -> NodesModule:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    # in float64: Adam makes whole steps of rounding where gradients are next to nothing
    module = NodesModule(
        FEATURES, width=4, hidden=16, batch_norm=batch_norm, lr=1e-2, objective=NestedLowRank("sequential")
    ).double()
    trainer = pl.Trainer(
        default_root_dir=folder,
        max_epochs=3,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[SolveNodes()],
        **settings,
    )
    trainer.fit(module, NodesDataModule(str(folder / "graph.npz"), batch_size=20))
    return module


def work(rank: int, port: int, folder: str, batch_norm: bool) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_RANK": str(rank)}
    strategy = DDPStrategy(process_group_backend="gloo")
    module = train(Path(folder), batch_norm, devices=WORLD, strategy=strategy, plugins=[LightningEnvironment()])
    torch.save(module.state_dict(), Path(folder) / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    upper = np.triu(rng.random((NODES, NODES)) < 0.15, 1)
    np.savez(tmp_path / "graph.npz", edges=np.argwhere(upper), x=rng.random((NODES, FEATURES)).astype(np.float32))
    return tmp_path


def two_processes(folder: Path, batch_norm: bool) -> list[dict[str, torch.Tensor]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    mp.start_processes(work, args=(port, str(folder), batch_norm), nprocs=WORLD, start_method="fork")
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(WORLD)]


@pytest.mark.slow
@pytest.mark.ddp
@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_two_processes_train_what_one_does(folder: Path) -> None:
    ranks, alone = two_processes(folder, batch_norm=False), train(folder, batch_norm=False).state_dict()
    assert alone["eigenvalues"][0] > 0
    for name, value in alone.items():
        for rank in ranks:
            torch.testing.assert_close(rank[name], value, rtol=1e-6, atol=1e-9, msg=name)


@pytest.mark.slow
@pytest.mark.ddp
@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_running_statistics_and_order_are_those_of_the_first_process(folder: Path) -> None:
    first, second = two_processes(folder, batch_norm=True)
    assert any("running" in name for name in first)
    for name, value in first.items():
        assert torch.equal(second[name], value), name
