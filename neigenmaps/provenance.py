"""What ran, where, and on which versions: written beside every result."""

import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from neigenmaps import __version__

PACKAGES = ("torch", "torchvision", "pytorch-lightning", "timm", "lightly", "numpy", "scikit-learn")


def provenance(seed: Any, *, device: torch.device | None = None) -> dict[str, Any]:
    """Commit (None outside a checkout), command, seed, time, versions and hardware, ready for JSON."""
    on_gpu = device is not None and device.type == "cuda"
    return {
        "neigenmaps": __version__,
        "commit": _commit(),
        "command": " ".join([Path(sys.executable).name, *sys.argv]),
        "seed": seed,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
        "device": torch.cuda.get_device_name(device) if on_gpu else _processor(),
        "threads": torch.get_num_threads(),
    }


def _commit() -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:  # no git on this machine
        return None
    return found.stdout.strip() or None


def _processor() -> str:
    description = Path("/proc/cpuinfo")
    if description.exists():
        models = [line.split(":")[1].strip() for line in description.read_text().splitlines() if "model name" in line]
        if models:
            return f"{models[0]}, {len(models)} cores"
    return platform.processor() or platform.machine()
