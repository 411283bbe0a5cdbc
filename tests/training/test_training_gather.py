"""Two processes, each with half a batch, compute the loss and the gradient of one process with the whole batch."""

import os
import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from neigenmaps.nn import NestedLowRank, NeuralEigenmap, Objective, PaperNeuralEigenmap, SpectralContrastive
from neigenmaps.training import gather_rows
from neigenmaps.training.gather import share_buffers, sum_over_processes

WORLD, ROWS, WIDTH = 2, 12, 4


def make_objectives() -> dict[str, Objective]:
    return {
        "sequential": NestedLowRank("sequential"),
        "joint": NestedLowRank("joint"),
        "constant": NeuralEigenmap(alpha=0.7),
        "adaptive": NeuralEigenmap(weighting="adaptive"),
        "cross_half": NeuralEigenmap(cross_half=True),
        "paper": PaperNeuralEigenmap(),
        "spectral": SpectralContrastive(),
    }


def make_views() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    image, noise = torch.randn(2, ROWS, 5, generator=generator, dtype=torch.float64)
    return torch.stack([image, image + 0.5 * noise])


def loss_and_gradient(objective: Objective, views_VBF: Tensor) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, WIDTH)).double()
    loss = objective(*(gather_rows(network(view)) for view in views_VBF)).loss
    loss.backward()
    return loss.detach(), torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])


def work(rank: int, port: int, folder: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=WORLD)
    views = make_views()[:, rank * ROWS // WORLD : (rank + 1) * ROWS // WORLD]
    found = {name: loss_and_gradient(objective, views) for name, objective in make_objectives().items()}
    norm = nn.BatchNorm1d(2)
    norm.running_mean = torch.full((2,), float(rank))
    share_buffers(norm)
    everything = {
        "statistics": norm.running_mean,
        "losses": found,
        "gathered": gather_rows(views[0]),
        "sum": sum_over_processes(torch.tensor(rank + 1.0)),
    }
    torch.save(everything, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.ddp
def test_two_processes_equal_one(tmp_path: Path) -> None:
    mp.spawn(work, args=(free_port(), str(tmp_path)), nprocs=WORLD)
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(WORLD)]
    for name, objective in make_objectives().items():
        loss, gradient = loss_and_gradient(objective, make_views())
        for rank in ranks:
            torch.testing.assert_close(rank["losses"][name][0], loss, rtol=1e-10, atol=1e-12, msg=name)
        mean = sum(rank["losses"][name][1] for rank in ranks) / WORLD  # what DDP does
        assert isinstance(mean, Tensor)
        torch.testing.assert_close(mean, gradient, rtol=1e-10, atol=1e-12, msg=name)
        assert not torch.allclose(ranks[0]["losses"][name][1], gradient, rtol=1e-3)  # halves alone do not suffice
    for rank in ranks:
        assert torch.equal(rank["gathered"], make_views()[0])
        assert rank["sum"] == 3
        assert torch.equal(rank["statistics"], torch.zeros(2))


def test_one_process_gathers_nothing() -> None:
    rows = torch.rand(3, 2)
    assert gather_rows(rows) is rows
    assert sum_over_processes(rows) is rows
    share_buffers(nn.BatchNorm1d(2))
