"""`neigenmaps.freed_memory` for the time of a fit, however that ends."""

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from neigenmaps.freed_memory import give_freed_memory_back, keep_freed_memory


class KeepFreedMemory(Callback):
    """On a CPU a step's freed memory stays for the next step. `EigenmapModule` brings one along."""

    def __init__(self) -> None:
        self._kept = False

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._kept = pl_module.device.type == "cpu" and keep_freed_memory()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._end()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._end()  # there is no teardown then

    def _end(self) -> None:
        if self._kept:
            give_freed_memory_back()
        self._kept = False
