"""What happens at 3 a.m.: bad steps are left out, a collapsed network is set back, a run beyond help stops and says why.

What is unusual: nothing here waits for the device within a step. A step whose loss or gradient is not finite is left out by the
fused optimiser itself (the flag that loss scaling uses), on the device; flags and codes are read a few times an epoch.
"""

import copy
import json
import math
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from neigenmaps.errors import CollapseError, CollapseWarning, InputError
from neigenmaps.files import whole_file
from neigenmaps.functional.code_health import CodeHealth, code_health
from neigenmaps.training.datamodule import ViewsDataModule
from neigenmaps.training.gather import process, sum_over_processes

CHECKS_PER_EPOCH, LONGEST_INTERVAL = 2, 50  # two checks in a row make an alarm: within an epoch
SNAPSHOT_EVERY = 50  # steps: a copy of everything costs more than a check
SMALLEST_RANK_SHARE = 0.02  # ten healthy runs on digits stayed at 0.07 or above (lowest: alpha 0.5)
MOST_COPIES = 0.25  # share of functions; healthy: 0
FALL_OF_VARIANCE = 1e-3  # from the largest seen
KEPT_READINGS = 200


class Reading(NamedTuple):
    """What one check saw. bad: which of the steps since the last check were left out."""

    step: int
    loss: float
    bad: list[bool]
    health: CodeHealth[float]


class Snapshot(NamedTuple):
    step: int
    module: dict[str, Any]
    optimizer: dict[str, Any]


class CollapseGuard(Callback):
    """Leaves out bad steps, sets back a collapsed network, and stops with a diagnosis when that does not help.

    A step whose loss or gradient is not finite changes nothing: no weight, no moment of the optimiser, no running statistic.
    An *alarm* is `max_skips` such steps in a row, or two checks in a row that find the codes collapsed: to few directions, to
    copies of one another, to constants. It sets weights and optimiser back to a healthy check and multiplies the learning rate by
    `lr_factor`; the data go on. After `max_rollbacks` of these, the next alarm raises CollapseError, and leaves in
    `<run folder>/collapse/` the diagnosis with all readings (`step=N.json`) and a batch that shows it (`step=N.pt`, for
    `torch.load(..., weights_only=True)`).

    every: steps between checks; None: half an epoch, at most 50. A healthy run is not changed by a bit. It costs a second
    copy of weights and optimiser in the device's memory. Under GradScaler (16-mixed) the scaler leaves out bad steps itself.
    """

    def __init__(
        self, every: int | None = None, max_skips: int = 3, max_rollbacks: int = 2, lr_factor: float = 0.5
    ) -> None:
        if (every is not None and every < 1) or max_skips < 1 or max_rollbacks < 0 or not 0 < lr_factor <= 1:
            raise InputError(
                "CollapseGuard: expected every and max_skips of at least 1, max_rollbacks of at least 0 and lr_factor in (0, 1], "
                f"got {every}, {max_skips}, {max_rollbacks} and {lr_factor}"
            )
        self.every, self.max_skips, self.max_rollbacks, self.lr_factor = every, max_skips, max_rollbacks, lr_factor
        self.rollbacks = 0
        self.skipped = 0
        self.readings: list[Reading] = []
        self._largest_variance = 0.0
        self._streak = 0
        self._suspicious = ""  # what the last check found
        self._flags: list[Tensor | bool] = []
        self._batches: list[tuple[int, int]] = []  # epoch and number of each step since the last check
        self._snapshot: Snapshot | None = None
        self._buffers: list[Tensor] = []
        self._kept: Tensor = torch.empty(0)
        self._kept_parts: list[Tensor] = []
        self._interval = 1

    def state_dict(self) -> dict[str, Any]:
        return {"rollbacks": self.rollbacks, "skipped": self.skipped, "largest_variance": self._largest_variance}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rollbacks, self.skipped = state_dict["rollbacks"], state_dict["skipped"]
        self._largest_variance = state_dict["largest_variance"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        in_epoch = min(trainer.num_training_batches, LONGEST_INTERVAL * CHECKS_PER_EPOCH)  # infinite for some streams
        self._interval = self.every or -(-int(in_epoch) // CHECKS_PER_EPOCH)
        self._buffers = [
            buffer
            for part in pl_module.modules()
            if isinstance(part, _BatchNorm)
            for buffer in running_statistics(part)
        ]
        self._keep_as_they_are()
        self._take_snapshot(trainer, pl_module)

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        self._loss = loss.detach()

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if sharded := type(gradients[0]) is DTensor:  # FSDP shards all parameters or none
            gradients = [gradient.to_local() for gradient in gradients]
        size = torch.stack([*torch._foreach_norm(gradients), self._loss]).sum()  # NaN and infinity pass through sums
        if sharded:  # else gradients are equal on all processes
            size = sum_over_processes(size)
        bad = not_finite(size)
        self._flags.append(bad)
        self._batches.append((trainer.current_epoch, trainer.fit_loop.batch_idx))
        if getattr(trainer.precision_plugin, "scaler", None) is not None:
            return
        reads_flag = getattr(optimizer, "_step_supports_amp_scaling", False)  # as GradScaler asks
        if reads_flag and isinstance(bad, Tensor):
            optimizer.found_inf = bad.to(torch.float32)  # type: ignore[attr-defined]
        elif bad:
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    parameter.grad = None

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not self._flags:  # gradients are still being accumulated
            return
        self._keep_statistics()
        if len(self._flags) >= self._interval or trainer.is_last_batch:
            self._check(trainer, pl_module, outputs, batch)

    def _keep_as_they_are(self) -> None:
        self._kept = flat(self._buffers)
        parts = self._kept.split([buffer.numel() for buffer in self._buffers]) if self._buffers else ()
        self._kept_parts = [part.view_as(buffer) for part, buffer in zip(parts, self._buffers, strict=True)]

    def _keep_statistics(self) -> None:
        """Running statistics as before a bad step: its forward pass has already changed them."""
        if not self._buffers:
            return
        bad = self._flags[-1]
        if isinstance(bad, Tensor):
            torch.where(bad, self._kept, flat(self._buffers), out=self._kept)
            torch._foreach_copy_(self._buffers, self._kept_parts)
        elif bad:
            torch._foreach_copy_(self._buffers, self._kept_parts)
        else:
            torch._foreach_copy_(self._kept_parts, self._buffers)

    def _check(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any) -> None:
        reading = self._read(trainer.global_step, outputs)
        self.readings = [*self.readings[-KEPT_READINGS:], reading]
        streak = self._count_bad(reading)
        found = self._symptom(reading)
        if streak >= self.max_skips:
            number = max(0, reading.bad.index(True)) if any(reading.bad) else -1
            said = f"{streak} steps in a row gave a loss or a gradient that is not finite"
            self._alarm(trainer, pl_module, said, batch, outputs, self._batches[number])
        elif found and self._suspicious:
            self._alarm(trainer, pl_module, found, batch, outputs, self._batches[-1])
        elif found:
            self._suspicious = found
        elif not any(reading.bad):
            self._suspicious = ""
            self._largest_variance = max(self._largest_variance, reading.health.variance)
            if self._snapshot is None or trainer.global_step - self._snapshot.step >= SNAPSHOT_EVERY:
                self._take_snapshot(trainer, pl_module)
        self._flags, self._batches = [], []

    def _read(self, step: int, outputs: Any) -> Reading:
        """The one place that waits for the device. All processes read the same: the mean of their codes' health."""
        health = code_health(outputs["codes"][0])
        numbers = torch.stack([*health, outputs["loss"].detach()]).to(torch.float64)
        flags = torch.stack([torch.as_tensor(flag, device=numbers.device) for flag in self._flags])
        shared = sum_over_processes(torch.cat([numbers, flags])) / process()[1]
        *of_codes, loss = (found := shared.tolist())[: len(numbers)]
        return Reading(step, loss, [flag != 0 for flag in found[len(numbers) :]], CodeHealth(*of_codes))

    def _count_bad(self, reading: Reading) -> int:
        """Longest run of bad steps that ends or lies within this interval."""
        longest = 0
        for bad in reading.bad:
            self._streak = self._streak + 1 if bad else 0
            longest = max(longest, self._streak)
        if n_bad := sum(reading.bad):
            self.skipped += n_bad
            warnings.warn(
                f"{n_bad} of the {len(reading.bad)} steps before step {reading.step} were left out: their loss or gradient is not "
                f"finite ({self.skipped} so far)",
                CollapseWarning,
                stacklevel=2,
            )
        return longest

    def _symptom(self, reading: Reading) -> str:
        """What is wrong with the codes; empty when nothing is, or when a low rank is on its way up, as after some starts."""
        health = reading.health
        if any(reading.bad) and not all(map(math.isfinite, health)):
            return ""
        if health.alive < 0.5:
            return f"{1 - health.alive:.0%} of the functions are constant"
        if health.variance < FALL_OF_VARIANCE * self._largest_variance:
            return f"the codes' variance fell to {health.variance:.2g}, from {self._largest_variance:.2g}"
        if health.copies > MOST_COPIES:
            return f"{health.copies:.0%} of the functions are copies of earlier ones"
        independent = health.rank / health.rank_share
        rises = len(self.readings) > 1 and health.rank > 1.1 * self.readings[-2].health.rank
        if independent >= 1.5 and health.rank < 1 + SMALLEST_RANK_SHARE * independent and not rises:
            return f"all functions lie in about {health.rank:.1f} directions, of {independent:.0f}"
        return ""

    def _alarm(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        said: str,
        batch: Any,
        outputs: Any,
        place: tuple[int, int],
    ) -> None:
        step = trainer.global_step
        self._suspicious, self._streak = "", 0
        if self.rollbacks < self.max_rollbacks:
            self.rollbacks += 1
            back = self._roll_back(trainer, pl_module)
            warnings.warn(
                f"step {step}: {said}. Weights and optimiser are those of step {back} again, the learning rate is multiplied by "
                f"{self.lr_factor} (time {self.rollbacks} of {self.max_rollbacks})",
                CollapseWarning,
                stacklevel=2,
            )
            return
        path = self._save_evidence(trainer, said, batch, outputs, place)
        raise CollapseError(
            f"step {step}: {said}, after {self.rollbacks} time(s) back to a healthy state and {self.skipped} step(s) left out. "
            f"Readings and a batch are in {path}. {advice(said)}"
        )

    def _take_snapshot(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        module, optimizer = pl_module.state_dict(), trainer.optimizers[0].state_dict()
        if (
            self._snapshot is None or not self._snapshot.optimizer["state"]
        ):  # the optimiser's state comes with its first step
            self._snapshot = Snapshot(trainer.global_step, copy.deepcopy(module), copy.deepcopy(optimizer))
            return
        kinds: dict[Any, tuple[list[Tensor], list[Tensor]]] = {}  # one call for all tensors of a kind
        for old, new in zip(tensors(self._snapshot[1:]), tensors((module, optimizer)), strict=True):
            olds, news = kinds.setdefault((type(new), new.dtype, new.device), ([], []))
            olds.append(old)
            news.append(new)
        for olds, news in kinds.values():
            torch._foreach_copy_(olds, news)
        groups = copy.deepcopy(optimizer["param_groups"])
        self._snapshot = Snapshot(
            trainer.global_step, self._snapshot.module, self._snapshot.optimizer | {"param_groups": groups}
        )

    def _roll_back(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> int:
        assert self._snapshot is not None
        pl_module.load_state_dict(self._snapshot.module)
        self._keep_as_they_are()
        optimizer = trainer.optimizers[0]
        rates = [group["lr"] * self.lr_factor for group in optimizer.param_groups]
        optimizer.load_state_dict(copy.deepcopy(self._snapshot.optimizer))
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        for config in trainer.lr_scheduler_configs:
            if hasattr(config.scheduler, "base_lrs"):
                config.scheduler.base_lrs = [rate * self.lr_factor for rate in config.scheduler.base_lrs]
        return self._snapshot.step

    def _save_evidence(self, trainer: pl.Trainer, said: str, batch: Any, outputs: Any, place: tuple[int, int]) -> Path:
        folder = Path(trainer.log_dir or trainer.default_root_dir) / "collapse"
        path = folder / f"step={trainer.global_step}.json"
        data = trainer.datamodule  # type: ignore[attr-defined]
        if isinstance(data, ViewsDataModule) and place != (trainer.current_epoch, trainer.fit_loop.batch_idx):
            batch = data.training_batch(*place, device=outputs["codes"].device)  # views follow from the place alone
        record = {
            "diagnosis": said,
            "advice": advice(said),
            "step": trainer.global_step,
            "epoch_and_batch": place,
            "readings": [
                {"step": one.step, "loss": one.loss, "bad_steps": sum(one.bad)} | one.health._asdict()
                for one in self.readings
            ],
        }
        if trainer.is_global_zero:
            with whole_file(path) as unfinished:
                unfinished.write_text(json.dumps(record, indent=1) + "\n")
            with whole_file(path.with_suffix(".pt")) as unfinished:
                torch.save({"batch": batch, "codes": outputs["codes"].cpu(), "epoch_and_batch": place}, unfinished)
        return path


def not_finite(size: Tensor) -> Tensor | bool:
    """On the CPU an answer; elsewhere a flag on the device, as to ask would be to wait."""
    if size.device.type == "cpu":
        return not math.isfinite(size.item())
    return (size - size) != 0  # isfinite is of several kernels


def running_statistics(norm: _BatchNorm) -> list[Tensor]:
    return [buffer for buffer in (norm.running_mean, norm.running_var) if buffer is not None]


def flat(buffers: list[Tensor]) -> Tensor:
    return torch.cat([buffer.flatten() for buffer in buffers]) if buffers else torch.empty(0)


def tensors(tree: Any) -> list[Tensor]:
    """All tensors in nested dictionaries and sequences, in order."""
    if isinstance(tree, Tensor):
        return [tree]
    parts = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list | tuple) else ()
    return [tensor for part in parts for tensor in tensors(part)]


def advice(said: str) -> str:
    """What to do about a symptom."""
    if "finite" in said:
        return "Lower model.lr, raise model.warmup, or train in float32 (trainer.precision=32)."
    if "copies" in said:
        return "Use the nested low-rank objective, or a penalty weight that separates functions (raise alpha)."
    return "Check that the objective keeps functions apart, that views differ between images, and lower model.lr."
