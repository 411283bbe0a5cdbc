"""The trainer of the benchmarks."""

from typing import Any

import pytorch_lightning as pl


def quiet_trainer(**options: Any) -> pl.Trainer:
    """On the CPU; logs, saves, shows and validates nothing. `options` are Lightning's and come before these."""
    quiet: dict[str, Any] = {"accelerator": "cpu", "logger": False, "num_sanity_val_steps": 0, "limit_val_batches": 0}
    quiet |= {f"enable_{what}": False for what in ("checkpointing", "progress_bar", "model_summary")}
    return pl.Trainer(**quiet | options)
