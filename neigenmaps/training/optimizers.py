"""AdamW or LARS with a linear warm-up and a cosine, over parameter groups that spare biases and norms from decay."""

import math
from typing import Literal

import torch
from lightly.utils.lars import LARS
from torch import nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from neigenmaps.errors import InputError

OptimizerName = Literal["adamw", "lars"]


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Matrices and kernels with decay; vectors (biases, norms) without. LARS also leaves the latter unscaled."""
    decayed = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    spared = [p for p in model.parameters() if p.requires_grad and p.ndim <= 1]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": spared, "weight_decay": 0.0}]


def check_rates(lr: float, weight_decay: float) -> None:
    """InputError unless lr is above 0 and weight_decay at least 0."""
    if not lr > 0 or not weight_decay >= 0:
        raise InputError(f"expected lr above 0 and weight_decay of at least 0, got {lr} and {weight_decay}")


def build_optimizer(model: nn.Module, name: OptimizerName, *, lr: float, weight_decay: float) -> Optimizer:
    """Errors: as `check_rates`; InputError for another name."""
    check_rates(lr, weight_decay)
    groups = parameter_groups(model, weight_decay)
    if name == "adamw":
        return AdamW(groups, lr=lr, fused=all(p.device.type in ("cpu", "cuda") for p in model.parameters()))
    if name == "lars":
        return LARS(groups, lr=lr, momentum=0.9)
    raise InputError(f"optimizer must be 'adamw' or 'lars', got {name!r}")


def warmup_cosine(optimizer: Optimizer, *, total_steps: int, warmup_steps: int) -> LambdaLR:
    """lr * t / warm-up at first, then lr * (1 + cos(pi s)) / 2 down to 0 at the last step; per step."""

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1)
        share = (step - warmup_steps) / max(1, total_steps - warmup_steps)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, share)))

    return LambdaLR(optimizer, factor)


def generator_states() -> dict[str, torch.Tensor | list[torch.Tensor]]:
    """States of torch's global generators (dropout, stochastic depth), as tensors."""
    states: dict[str, torch.Tensor | list[torch.Tensor]] = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state_all()
    return states


def restore_generators(states: dict[str, torch.Tensor | list[torch.Tensor]]) -> None:
    """Set what `generator_states` read; devices that are gone or new keep their own state."""
    cpu = states["cpu"]
    assert isinstance(cpu, torch.Tensor)
    torch.set_rng_state(cpu.cpu())
    for number, state in enumerate(states.get("cuda", [])):
        if number < torch.cuda.device_count():
            torch.cuda.set_rng_state(state.cpu(), number)
