"""Lightning: module, data module, callbacks, command line."""

from neigenmaps.training.alignment_monitor import AlignmentMonitor
from neigenmaps.training.callbacks import OnlineKNN, SpectrumMonitor
from neigenmaps.training.checkpoints import read_checkpoint
from neigenmaps.training.cli import EigenmapCLI
from neigenmaps.training.collapse_guard import CollapseGuard
from neigenmaps.training.datamodule import RowLoader, ViewsDataModule
from neigenmaps.training.gather import gather_rows
from neigenmaps.training.module import EigenmapModule
from neigenmaps.training.ritz import FitRitz, fit_ritz, ritz_of
from neigenmaps.training.sharding import FSDP
from neigenmaps.training.weight_averaging import EMAWeights

__all__ = [
    "FSDP",
    "AlignmentMonitor",
    "CollapseGuard",
    "EMAWeights",
    "EigenmapCLI",
    "EigenmapModule",
    "FitRitz",
    "OnlineKNN",
    "RowLoader",
    "SpectrumMonitor",
    "ViewsDataModule",
    "fit_ritz",
    "gather_rows",
    "read_checkpoint",
    "ritz_of",
]
