"""Optimisers spare vectors from decay; the learning rate warms up and falls as a cosine."""

import math
import warnings
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from small_runs import make_data, make_module, make_trainer
from torch import nn

from neigenmaps.errors import InputError
from neigenmaps.training.optimizers import build_optimizer, parameter_groups, warmup_cosine


def make_network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))


def test_biases_and_norms_are_spared() -> None:
    network = make_network()
    network[4].weight.requires_grad_(False)
    decayed, spared = parameter_groups(network, 0.1)
    assert [tuple(p.shape) for p in decayed["params"]] == [(4, 1, 3, 3)]  # type: ignore[attr-defined]
    assert [tuple(p.shape) for p in spared["params"]] == [(4,), (4,), (4,), (3,)]  # type: ignore[attr-defined]
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.1, 0.0)


@pytest.mark.parametrize("name", ["adamw", "lars"])
def test_only_matrices_decay(name: str) -> None:
    network = make_network()
    optimizer = build_optimizer(network, name, lr=0.1, weight_decay=0.5)  # type: ignore[arg-type]
    before = [p.detach().clone() for p in network.parameters()]
    sum(p.sum() * 0 for p in network.parameters()).backward()  # type: ignore[union-attr]
    for p in network.parameters():  # LARS leaves rows of zero gradient alone
        assert p.grad is not None
        p.grad.fill_(1e-9 if name == "lars" and p.ndim > 1 else 0.0)
    optimizer.step()
    for p, old in zip(network.parameters(), before, strict=True):
        assert (p.detach().norm() < old.norm()) if p.ndim > 1 else torch.equal(p.detach(), old)


@pytest.mark.parametrize("name", ["adamw", "lars"])
def test_optimisers_lower_a_loss(name: str) -> None:
    network, images = make_network(), torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    rate = {"adamw": 1e-2, "lars": 1.0}[name]
    optimizer = build_optimizer(network, name, lr=rate, weight_decay=1e-4)  # type: ignore[arg-type]
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = (network(images) - 1).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_lars_trains_a_module(few_digits: Path, tmp_path: Path) -> None:
    module = make_module(optimizer="lars", lr=0.2)
    before = module.model.projector[0].weight.detach().clone()
    make_trainer(tmp_path).fit(module, make_data(few_digits))
    assert not torch.equal(module.model.projector[0].weight, before)


def rates(total: int, warmup: int) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    scheduler, found = warmup_cosine(optimizer, total_steps=total, warmup_steps=warmup), []
    for _ in range(total):
        found.append(optimizer.param_groups[0]["lr"])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the scheduler steps without an optimiser
            scheduler.step()
    return [*found, optimizer.param_groups[0]["lr"]]


def test_warmup_and_cosine() -> None:
    found = rates(total=24, warmup=4)
    assert found[:5] == pytest.approx([0.4, 0.8, 1.2, 1.6, 2.0])
    assert found[14] == pytest.approx(1.0)  # half way between warm-up and end
    assert found[9] == pytest.approx(1 + math.cos(math.pi / 4))
    assert found[24] == pytest.approx(0.0)
    assert all(a > b for a, b in pairwise(found[4:]))


def test_no_warmup_starts_at_the_peak() -> None:
    assert rates(total=4, warmup=0)[0] == pytest.approx(2.0)


@pytest.mark.parametrize(("lr", "decay"), [(0.0, 0.0), (-1.0, 0.0), (math.nan, 0.0), (1.0, -1.0), (1.0, math.nan)])
def test_rates_out_of_range(lr: float, decay: float) -> None:
    with pytest.raises(InputError, match="expected lr above 0"):
        build_optimizer(make_network(), "adamw", lr=lr, weight_decay=decay)


def test_unknown_optimiser() -> None:
    with pytest.raises(InputError, match="must be 'adamw' or 'lars', got 'sgd'"):
        build_optimizer(make_network(), "sgd", lr=1.0, weight_decay=0.0)  # type: ignore[arg-type]


@pytest.mark.parametrize("warmup", [-0.1, 1.0, 5.0, math.nan])
def test_warmup_is_a_share(warmup: float) -> None:
    with pytest.raises(InputError, match="warmup as a share"):
        make_module(warmup=warmup)
