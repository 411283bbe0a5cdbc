"""A callback that tells, while training runs, how far the representation has converged toward reference models."""

import shutil
import time
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor

from neigenmaps.data import ImageStore, load_splits
from neigenmaps.errors import AlignmentWarning, CheckpointError, InputError, NonFiniteError
from neigenmaps.evaluation.alignments import Alignment, read_alignments, write_alignment
from neigenmaps.evaluation.convergence import AlignmentSettings, Layer, Measure, Method, ReferencePanel, embed_layers
from neigenmaps.evaluation.references import Reference
from neigenmaps.training.datamodule import ViewsDataModule
from neigenmaps.training.saved_models import reference_of

STILL_CHECKS = 3  # in a row, before convergence is believed
DIVERGED = 0.2  # calibrated alignment lost since the best checkpoint


class AlignmentMonitor(Callback):
    """Embeds a probe set of held-out images with the current weights and aligns it to references, on schedule.

    references: by name, a `Reference` or a short text, see `neigenmaps.evaluation.references`. probe_size: held-out images
    of the data module, evenly spread; probe_dataset: other images, by name or path. every_n_epochs or every_n_steps.
    layers: the first one is logged as `align/<reference>/<measure>`, further ones with `/<layer>` behind. methods, measures,
    n_eigenvectors, n_neighbors, n_permutations, refit: see `AlignmentSettings`. cache: folder for what belongs to the references.
    background: measure on a thread while training goes on; None does so on a GPU, and where other processes would wait.
    stop_when_still: ends training when the calibrated likeness to the previous checkpoint has reached this for three
    checks in a row. Warns when the mean alignment falls by more than 0.2 below its best: divergence or collapse.

    Logged values are calibrated, 0 what shuffled rows give; `align/overhead` is the share of training time spent here.
    Everything measured goes to `<run folder>/alignment/`, from which a resumed run takes its earlier checkpoints.
    """

    def __init__(
        self,
        references: Mapping[str, str | Reference] | None = None,
        probe_size: int = 1000,
        probe_dataset: str | None = None,
        every_n_epochs: int | None = None,
        every_n_steps: int | None = None,
        layers: Sequence[Layer] = ("backbone",),
        methods: Sequence[Method] = ("lfm", "gcpa"),
        measures: Sequence[Measure] = ("unbiased_cka", "mutual_knn", "procrustes"),
        n_eigenvectors: int = 30,
        n_neighbors: int | None = None,
        n_permutations: int = 49,
        refit: bool = False,
        cache: str | None = None,
        background: bool | None = None,
        stop_when_still: float | None = None,
    ) -> None:
        if every_n_epochs is not None and every_n_steps is not None:
            raise InputError("expected every_n_epochs or every_n_steps, got both: choose one")
        if any(every is not None and every < 1 for every in (every_n_epochs, every_n_steps)):
            raise InputError("expected every_n_epochs and every_n_steps of at least 1")
        if not layers:
            raise InputError("expected at least one layer, 'backbone' or 'projector', got none")
        named = {"pixels": "pixels"} if references is None else references
        self.references = {name: reference_of(text) if isinstance(text, str) else text for name, text in named.items()}
        self.settings = AlignmentSettings(methods, measures, n_eigenvectors, n_neighbors, n_permutations, refit=refit)
        self.probe_size, self.probe_dataset, self.layers = probe_size, probe_dataset, tuple(layers)
        self.every_n_steps = every_n_steps
        self.every_n_epochs = 1 if every_n_epochs is None and every_n_steps is None else every_n_epochs
        self.cache, self.background, self.stop_when_still = cache, background, stop_when_still
        self.alignments: list[Alignment] = []
        self._earlier_folder: str | None = None
        self._spent = 0.0

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        data: ViewsDataModule = trainer.datamodule  # type: ignore[attr-defined]
        self.folder = Path(trainer.default_root_dir) / "alignment"
        self.probe = self.probe_images(data)
        self.panel = ReferencePanel(self.references, self.probe, self.settings, cache=self.cache)
        waited_for = pl_module.device.type != "cpu" or trainer.world_size > 1
        in_background = waited_for if self.background is None else self.background
        self._worker = ThreadPoolExecutor(1) if in_background else None
        self._pending: Future[Alignment | str] | None = None
        self._started, self._spent = time.perf_counter(), 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        self._take_up(trainer.global_step)
        if not self.alignments:  # a random network shares the input's geometry: a baseline
            self._measure(trainer, pl_module, epoch=0)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        due = self.every_n_steps is not None and trainer.global_step % self.every_n_steps == 0
        if due and trainer.is_global_zero:
            self._measure(trainer, pl_module, epoch=trainer.current_epoch)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        due = self.every_n_epochs is not None and (trainer.current_epoch + 1) % self.every_n_epochs == 0
        if due and trainer.is_global_zero:
            self._measure(trainer, pl_module, epoch=trainer.current_epoch + 1)
        if self.stop_when_still is not None:
            still = trainer.is_global_zero and self._is_still(self.stop_when_still)
            if trainer.strategy.reduce_boolean_decision(still, all=False):
                trainer.should_stop = True

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        self._collect(trainer)
        if self._last_step() != trainer.global_step:
            self._measure(trainer, pl_module, epoch=trainer.current_epoch)
            self._collect(trainer)
        if self._worker is not None:
            self._worker.shutdown()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        if trainer.is_global_zero and getattr(self, "_worker", None) is not None:
            self._worker.shutdown(wait=False, cancel_futures=True)  # type: ignore[union-attr]

    def state_dict(self) -> dict[str, Any]:
        return {"folder": str(self.folder)} if hasattr(self, "folder") else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._earlier_folder = state_dict.get("folder")

    def probe_images(self, data: ViewsDataModule) -> ImageStore:
        """What is embedded: held-out images of the data, or of `probe_dataset`. Warns of images that are trained on."""
        if self.probe_dataset is None:
            probe = data.splits.test.thin(self.probe_size)
        else:
            size = data.splits.train.images_NCHW.shape[-1]
            probe = load_splits(self.probe_dataset, root=data.root, image_size=size).test.thin(self.probe_size)
        if shared := shared_images(probe.images_NCHW, data.splits.train.images_NCHW):
            warnings.warn(
                f"AlignmentMonitor: {shared} of {len(probe)} probe images are trained on: what it measures on them is not "
                "what the model makes of new images; set probe_dataset",
                AlignmentWarning,
                stacklevel=2,
            )
        return probe

    def _take_up(self, step: int) -> None:
        """What the run that is resumed had measured up to here."""
        self.alignments = []
        if self._earlier_folder is None or not Path(self._earlier_folder).is_dir():
            return
        for one in read_alignments(self._earlier_folder):
            if one.step <= step and self.panel.measured(one):
                self.alignments.append(one)
        if Path(self._earlier_folder) != self.folder:
            self.folder.mkdir(parents=True, exist_ok=True)
            for one in self.alignments:
                shutil.copy(Path(self._earlier_folder) / f"step={one.step:08d}.safetensors", self.folder)

    def _measure(self, trainer: pl.Trainer, pl_module: pl.LightningModule, epoch: int) -> None:
        started = time.perf_counter()
        self._collect(trainer)
        layers = embed_layers(pl_module.model, self.probe.images_NCHW, self.layers)  # type: ignore[arg-type]
        if bad := [name for name, rows in layers.items() if not torch.isfinite(rows).all()]:
            raise NonFiniteError(
                f"the model gives NaN or infinity on the probe set at step {trainer.global_step} ({', '.join(bad)}): training "
                "diverged; lower lr or raise warmup"
            )
        previous = self.alignments[-1] if self.alignments else None
        if self._worker is None:
            self._record(trainer, self._align(layers, trainer.global_step, epoch, previous))
        else:
            self._pending = self._worker.submit(self._align, layers, trainer.global_step, epoch, previous)
        self._spent += time.perf_counter() - started

    def _align(self, layers: dict[str, Tensor], step: int, epoch: int, previous: Alignment | None) -> Alignment | str:
        """What was measured, or why nothing could be: training must not end because a collapsed space has no geometry."""
        try:
            return self.panel.align(layers, step=step, epoch=epoch, previous=previous)
        except InputError as error:
            return f"nothing could be aligned at step {step}, perhaps the representation has collapsed: {error}"

    def _collect(self, trainer: pl.Trainer) -> None:
        if self._pending is not None:
            alignment, self._pending = self._pending.result(), None
            self._record(trainer, alignment)

    def _record(self, trainer: pl.Trainer, alignment: Alignment | str) -> None:
        if isinstance(alignment, str):
            warnings.warn(alignment, AlignmentWarning, stacklevel=2)
            return
        self.alignments.append(alignment)
        try:
            write_alignment(alignment, self.folder)
        except CheckpointError as error:  # such as a full disk: the numbers are logged all the same
            warnings.warn(f"{error}; training goes on", AlignmentWarning, stacklevel=2)
        logged = {f"align/{name}": value for name, value in alignment.headlines().items()}
        logged["align/overhead"] = self._spent / max(time.perf_counter() - self._started, 1e-9)
        for logger in trainer.loggers:
            logger.log_metrics(logged, step=alignment.step)
        if bar := trainer.progress_bar_callback:
            bar.print(alignment.summary())
        self._warn_if_diverged()

    def _warn_if_diverged(self) -> None:
        means = [_mean_alignment(one) for one in self.alignments]
        if len(means) > 1 and means[-1] < max(means[:-1]) - DIVERGED <= means[-2]:
            warnings.warn(
                f"the mean alignment with the references fell from {max(means[:-1]):.2f} to {means[-1]:.2f} at step "
                f"{self._last_step()}: training may be diverging or collapsing; look at train/loss and spectrum/*",
                AlignmentWarning,
                stacklevel=2,
            )

    def _is_still(self, threshold: float) -> bool:
        layer = self.layers[0]
        likeness = [one.values[layer].get("previous", {}).get("lfm", {}).get("calibrated") for one in self.alignments]
        recent = likeness[-STILL_CHECKS:]
        return len(recent) == STILL_CHECKS and all(value is not None and value >= threshold for value in recent)

    def _last_step(self) -> int | None:
        return self.alignments[-1].step if self.alignments else None


def shared_images(probe_NCHW: Tensor, train_NCHW: Tensor) -> int:
    """How many probe images are among the training images, pixel by pixel."""
    if probe_NCHW.shape[1:] != train_NCHW.shape[1:]:
        return 0
    trained = {hash(image.numpy().tobytes()) for image in train_NCHW}
    return sum(hash(image.numpy().tobytes()) in trained for image in probe_NCHW)


def _mean_alignment(alignment: Alignment) -> float:
    references = next(iter(alignment.values.values()))
    values = [f["calibrated"] for name, measures in references.items() if name != "previous" for f in measures.values()]
    return sum(values) / len(values)
