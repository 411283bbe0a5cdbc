"""Value and gradient of every loss on 1, 2 and 4 gloo processes, also when they hold different numbers of rows."""

import multiprocessing
import os
import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from neigenmaps.errors import ShapeError
from neigenmaps.functional import eigenmap
from neigenmaps.nn import (
    BarlowTwins,
    NestedLowRank,
    NeuralEigenmap,
    Objective,
    PaperNeuralEigenmap,
    SimCLR,
    SpectralContrastive,
    VICReg,
)
from neigenmaps.training import gather_rows
from neigenmaps.training.gather import exchange, global_loss, share_buffers, sum_over_processes

WIDTH, UNEVEN = 5, {1: (14,), 2: (3, 11), 4: (5, 2, 6, 1)}
MANY_VIEWS = ("sequential", "octave", "barlow")


def make_objectives() -> dict[str, Objective]:
    return {
        "sequential": NestedLowRank("sequential"),
        "joint": NestedLowRank("joint"),
        "octave": NestedLowRank("octave"),
        "constant": NeuralEigenmap(alpha=0.7),
        "adaptive": NeuralEigenmap(weighting="adaptive"),
        "cross_half": NeuralEigenmap(cross_half=True),
        "paper": PaperNeuralEigenmap(),
        "spectral": SpectralContrastive(),
        "barlow": BarlowTwins(),
        "vicreg": VICReg(),
        "simclr": SimCLR(),
    }


def make_views(rows: int) -> Tensor:
    image, noise = torch.randn(2, rows, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return torch.stack([image, image + 0.5 * noise])


def make_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, WIDTH)).double()


def gradient(network: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])


def expected(objective: Objective, views: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One process, which holds all rows."""
    network = make_network()
    result = objective(*(network(view) for view in views))
    result.loss.backward()
    return result.loss.detach(), gradient(network), result.eigenvalues


def through_ddp(objective: Objective, views: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    network = DistributedDataParallel(make_network())
    result = global_loss(objective, *network(views.flatten(0, 1)).unflatten(0, views.shape[:2]))
    result.loss.backward()
    return result.loss.detach(), gradient(network), result.eigenvalues


def many_views(objective: Objective, views: Tensor, parallel: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Two large views, and two that are small."""
    network = DistributedDataParallel(make_network()) if parallel else make_network()
    codes = network(torch.cat([views, 0.5 * views]).flatten(0, 1)).unflatten(0, (4, views.shape[1]))
    result = global_loss(objective, *codes, groups=(2, 2))
    result.loss.backward()
    return result.loss.detach(), gradient(network), result.eigenvalues


def uneven(name: str, views: Tensor, counts: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """Both ways of a loss whose rows are spread unevenly."""
    network = DistributedDataParallel(make_network())
    codes = network(views.flatten(0, 1)).unflatten(0, views.shape[:2])
    if name == "moments":
        result = eigenmap.nested_low_rank_loss(*codes, nesting="octave", reduce=sum_over_processes)
        (result.loss * len(counts)).backward()
    else:
        result = NestedLowRank("octave")(*(gather_rows(codes_BK, counts) for codes_BK in codes))
        result.loss.backward()
    return result.loss.detach(), gradient(network), result.eigenvalues


def work(rank: int, world: int, port: int, folder: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=world)
    found = {}
    views = make_views(16)[:, rank::world]  # as the loader deals them
    for name, objective in make_objectives().items():
        found[name] = through_ddp(objective, views)
        if name in MANY_VIEWS:
            found[f"{name}, many views"] = many_views(objective, views, parallel=True)
    counts = UNEVEN[world]
    start = sum(counts[:rank])
    for name in ("moments", "gather"):
        found[f"uneven {name}"] = uneven(name, make_views(14)[:, start : start + counts[rank]], counts)
    norm = nn.BatchNorm1d(2)
    norm.running_mean = torch.full((2,), float(rank))
    share_buffers(norm)
    everything = {
        "losses": found,
        "gathered": gather_rows(views[0]),
        "sum": sum_over_processes(torch.tensor(rank + 1.0)),
        "statistics": norm.running_mean,
    }
    torch.save(everything, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.ddp
@pytest.mark.parametrize("world", [pytest.param(1, marks=pytest.mark.slow), 2, pytest.param(4, marks=pytest.mark.slow)])
def test_ddp_of_every_loss_equals_one_process(tmp_path: Path, world: int) -> None:
    multiprocessing.set_forkserver_preload([__name__])  # imports once, not once each
    mp.start_processes(work, args=(world, free_port(), str(tmp_path)), nprocs=world, start_method="forkserver")
    dealt = torch.cat([make_views(16)[:, rank::world] for rank in range(world)], 1)
    cases = {name: (objective, dealt) for name, objective in make_objectives().items()}
    cases |= {f"uneven {name}": (NestedLowRank("octave"), make_views(14)) for name in ("moments", "gather")}
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(world)]
    for rank in ranks:
        for name, (objective, views) in cases.items():
            for got, wanted in zip(rank["losses"][name], expected(objective, views), strict=True):
                torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-12, msg=f"{name}: {got}, expected {wanted}")
        for name in MANY_VIEWS:
            objective = make_objectives()[name]
            several = many_views(objective, dealt, parallel=False)
            for got, wanted in zip(rank["losses"][f"{name}, many views"], several, strict=True):
                torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-12, msg=f"{name}: {got}, expected {wanted}")
        assert torch.equal(rank["gathered"], dealt[0])
        assert rank["sum"] == world * (world + 1) / 2
        assert torch.equal(rank["statistics"], torch.zeros(2))


@pytest.mark.parametrize("nesting", ["sequential", "joint", "octave"])
@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("threshold", [0.0, 0.4])
def test_shares_of_a_batch(nesting: eigenmap.Nesting, center: bool, threshold: float) -> None:
    """Without processes: sums of two shares are written down in a first pass and handed out in the second."""
    z1, z2 = torch.randn(2, 9, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    whole = [z.clone().requires_grad_() for z in (z1, z2)]
    given = {"nesting": nesting, "center": center, "threshold": threshold, "scale": 1 + threshold}
    result = eigenmap.nested_low_rank_loss(*whole, **given)  # type: ignore[arg-type]
    result.loss.backward()
    sums: list[Tensor] = []  # what reduce gives, call by call; found one after the other, as each needs the ones before
    parts = [(z1[:4], z2[:4]), (z1[4:], z2[4:])]

    def run(part: tuple[Tensor, Tensor], seen: list[Tensor]) -> tuple[eigenmap.EigenmapResult, list[Tensor]]:
        leaves = [z.clone().requires_grad_() for z in part]

        def reduce(value: Tensor) -> Tensor:
            seen.append(value.detach().clone())
            return sums[len(seen) - 1].clone() if len(seen) <= len(sums) else value

        outcome = eigenmap.nested_low_rank_loss(*leaves, reduce=reduce, **given)  # type: ignore[arg-type]
        outcome.loss.backward()
        return outcome, leaves

    while True:
        calls: list[list[Tensor]] = [[], []]
        found = [run(part, seen) for part, seen in zip(parts, calls, strict=True)]
        if len(sums) == len(calls[0]):
            break
        sums.append(calls[0][len(sums)] + calls[1][len(sums)])
    for outcome, _ in found:
        torch.testing.assert_close(outcome.loss, result.loss, rtol=1e-12, atol=0)
        torch.testing.assert_close(outcome.eigenvalues, result.eigenvalues, rtol=1e-12, atol=0)
    for view in (0, 1):
        got = torch.cat([leaves[view].grad for _, leaves in found])  # type: ignore[misc]
        torch.testing.assert_close(got, whole[view].grad, rtol=1e-10, atol=1e-13)


def test_one_process_gathers_nothing() -> None:
    rows = torch.rand(3, 2)
    assert gather_rows(rows) is rows
    assert sum_over_processes(rows) is rows
    share_buffers(nn.BatchNorm1d(2))


def test_the_cheaper_exchange() -> None:
    assert exchange(WIDTH, 16, 2) == exchange(WIDTH, 16, 4) == "moments"  # what the losses above were computed by
    assert exchange(512, 1024, 8) == "moments"
    assert exchange(8192, 4096, 8) == "moments"  # twice the numbers, but an eighth of the work
    assert exchange(8192, 256, 2) == "gather"
    assert exchange(64, 32, 2) == "gather"


def test_counts_must_be_those_of_the_rows() -> None:
    rows = torch.rand(3, 2)
    assert gather_rows(rows, [3]) is rows
    for counts in ([2], [3, 3]):
        with pytest.raises(ShapeError, match=r"expected 1 count\(s\) with 3 at place 0"):
            gather_rows(rows, counts)
