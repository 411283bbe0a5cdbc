"""The Lightning module: views in, one loss out."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.strategies import FSDPStrategy
from torch import Tensor

from neigenmaps.errors import CheckpointError, IdentifiabilityWarning, InputError, NonFiniteError
from neigenmaps.nn import NestedLowRank, NeuralEigenmapModel, Objective
from neigenmaps.nn.encoders import feature_width
from neigenmaps.training.checkpoints import count_the_next_epoch
from neigenmaps.training.collapse_guard import CollapseGuard
from neigenmaps.training.compiling import Compile, Network, check_compile, compiled_network
from neigenmaps.training.datamodule import ViewsDataModule
from neigenmaps.training.gather import global_loss
from neigenmaps.training.kept_memory import KeepFreedMemory
from neigenmaps.training.optimizers import (
    OptimizerName,
    build_optimizer,
    check_rates,
    generator_states,
    restore_generators,
    warmup_cosine,
)
from neigenmaps.training.ritz import FitRitz
from neigenmaps.training.sharding import FSDP, shard
from neigenmaps.types import Stem


class EigenmapModule(pl.LightningModule):
    """Trains a `NeuralEigenmapModel` on pairs of views with any objective.

    backbone ... backbone_options: as in `NeuralEigenmapModel`. objective: `NestedLowRank` when None.
    lr: peak learning rate. warmup: share of all steps before it is reached. channels_last: memory format of the backbone.
    compile: true, false, "auto" for the faster of both, as the first step measures, or "reduce-overhead" for CUDA graphs.
    """

    def __init__(
        self,
        backbone: str = "digits_cnn",
        stem: Stem = "default",
        in_chans: int = 1,
        image_size: int = 8,
        width: int = 128,
        hidden: int = 512,
        row_power: float | None = None,
        pixel_mean: Sequence[float] = (0.5,),
        pixel_std: Sequence[float] = (0.5,),
        backbone_options: Mapping[str, Any] | None = None,
        objective: Objective | None = None,
        optimizer: OptimizerName = "adamw",
        lr: float = 2e-3,
        weight_decay: float = 1e-4,
        warmup: float = 0.1,
        channels_last: bool = False,
        compile: Compile = False,
    ) -> None:
        super().__init__()
        if not 0 <= warmup < 1:
            raise InputError(f"expected warmup as a share of all steps, in [0, 1), got {warmup}")
        check_rates(lr, weight_decay)
        self.model = NeuralEigenmapModel(
            backbone,
            stem=stem,
            in_chans=in_chans,
            image_size=image_size,
            width=width,
            hidden=hidden,
            row_power=row_power,
            pixel_mean=pixel_mean,
            pixel_std=pixel_std,
            backbone_options=backbone_options,
        )
        if channels_last:
            self.model.backbone = self.model.backbone.to(memory_format=torch.channels_last)
        self.objective = NestedLowRank() if objective is None else objective
        self.optimizer: OptimizerName = optimizer
        self.lr = lr
        self.weight_decay = weight_decay
        self.warmup = warmup
        self._guarded = False
        self._compile: Compile = compile
        self._compiled: Network | None = None
        self._undecided = False

    def configure_model(self) -> None:
        """With `FSDP` the encoder is spread over processes; else nothing is left to do. InputError for Lightning's own."""
        if isinstance(self.trainer.strategy, FSDPStrategy):
            raise InputError(
                "FSDPStrategy is of an older form: use neigenmaps.training.FSDP, or --trainer.strategy fsdp"
            )
        if isinstance(self.trainer.strategy, FSDP):
            if self._compile:
                raise InputError("model.compile and FSDP do not go together here: set model.compile to false")
            assert self.device_mesh is not None
            shard(self.model, self.device_mesh["data_parallel"])

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """codes: of the views, without the small ones."""
        views_by_size = [batch[name] for name in ("views", "small_views") if name in batch]
        if self._undecided:
            self._compiled = compiled_network(self.model, [one.flatten(0, 1) for one in views_by_size], self._compile)
            self._undecided = False
        by_size = [self.views_to_codes(one) for one in views_by_size]
        views = [codes_BK for codes_VBK in by_size for codes_BK in codes_VBK]
        result = global_loss(self.objective, *views, groups=[len(codes_VBK) for codes_VBK in by_size])
        self.log("train/loss", result.loss, prog_bar=True)
        self.log("train/alignment", result.alignment)
        self.log("train/orthogonality", result.orthogonality)
        return {"loss": result.loss, "codes": by_size[0].detach()}

    def views_to_codes(self, views_VBCHW: Tensor) -> Tensor:
        """Views of one size in one forward pass, so that they share BatchNorm statistics: (V, B, C, H, W) -> (V, B, K)."""
        network = self._compiled if self.training and self._compiled is not None else self.model
        codes_NK: Tensor = network(views_VBCHW.flatten(0, 1)).codes
        return codes_NK.unflatten(0, views_VBCHW.shape[:2])

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """One pass over the probe set for all callbacks: codes of the clean images and of their views."""
        return {"codes": self.model(batch["images"]).codes, "view_codes": self.views_to_codes(batch["views"])}

    def prepare_data(self) -> None:
        self.check_data(self.trainer.datamodule)  # type: ignore[attr-defined]  # before loggers make a run folder

    def check_data(self, data: Any) -> None:
        """InputError when the images of a `ViewsDataModule` do not fit the model, or its views are the images themselves.

        Another data module is taken as it is.
        """
        if not isinstance(data, ViewsDataModule):
            return
        if not any(law.changes_images for law in data.augmentation.laws):
            raise InputError(
                "data.laws: expected a law that changes images, got none: all views of an image would be equal, and every "
                "function an eigenfunction of eigenvalue 1; say which changes keep the content, as configs/*.yaml do"
            )
        channels, height, width = data.splits.train.images_NCHW.shape[1:]
        expected, size = self.model.config["in_chans"], self.model.config["image_size"]
        if channels != expected:
            raise InputError(
                f"the images of {data.dataset!r} have {channels} channel(s), the model expects {expected}: "
                f"set model.in_chans to {channels}"
            )
        if (height, width) != (size, size):
            other = f", or model.image_size (for transformers also model.backbone_options.img_size) to {height}"
            raise InputError(
                f"the images of {data.dataset!r} have {height}x{width} pixels, the model expects {size}x{size}: "
                f"set data.image_size to {size}{other if height == width else ', which makes them square'}"
            )

        if data.small_views is not None:
            self._check_small(data.small_views.size, channels)

    def _check_small(self, size: int, channels: int) -> None:
        try:
            feature_width(self.model.backbone, channels, size)
        except (RuntimeError, AssertionError, InputError) as error:  # too small for its pooling; transformers assert
            raise InputError(
                f"data.small_views.size: this backbone does not take images of {size}x{size} pixels ({error}). Set it to "
                "model.image_size, choose a backbone that averages over positions, or for transformers "
                "model.backbone_options.dynamic_img_size"
            ) from error

    def check_resume(self, checkpoint: Mapping[str, Any]) -> None:
        """As `check_checkpoint`; CheckpointError also when the optimizer is another one."""
        self.check_checkpoint(checkpoint)
        theirs = checkpoint.get("optimizer", self.optimizer)
        if theirs != self.optimizer:
            raise CheckpointError(
                f"the checkpoint was trained with optimizer {theirs!r}, whose state {self.optimizer!r} cannot go on from: "
                f"set model.optimizer to {theirs}, or start a run without --ckpt_path"
            )

    def check_checkpoint(self, checkpoint: Mapping[str, Any]) -> None:
        """CheckpointError when a checkpoint holds another model than this one."""
        theirs, ours = checkpoint.get("model_config", {}), self.model.config
        if differ := [name for name in ours if theirs.get(name) != ours[name]]:
            shown = "; ".join(f"{name} is {theirs.get(name)!r} there and {ours[name]!r} here" for name in differ)
            raise CheckpointError(f"the checkpoint holds another model: {shown}; use its run folder's config.yaml")

    def teardown(self, stage: str) -> None:
        self._compiled = None  # which nobody could pickle

    def on_fit_start(self) -> None:
        check_compile(self._compile, self.device)
        self._undecided, self._compiled = bool(self._compile), None
        callbacks = self.trainer.callbacks  # type: ignore[attr-defined]
        self._guarded = any(
            isinstance(one, CollapseGuard) for one in callbacks
        )  # which leaves out such steps, and says so
        batch = getattr(self.trainer.datamodule, "batch_size", None)  # type: ignore[attr-defined]
        if batch is not None and (doubt := self.objective.doubt(batch, self.model.config["width"])):
            warnings.warn(doubt, IdentifiabilityWarning, stacklevel=2)

    def on_train_start(self) -> None:
        count_the_next_epoch(self.trainer)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self._guarded or not self.trainer._logger_connector.should_update_logs:
            return
        if not torch.isfinite(outputs["loss"]):
            raise NonFiniteError(
                f"the loss is {outputs['loss'].item()} at step {self.global_step}: lower lr, raise warmup, or train in "
                "float32 (trainer.precision=32); checkpoints of earlier epochs are intact"
            )

    def configure_callbacks(self) -> list[Callback]:
        """`KeepFreedMemory`; and for a trainer without a `FitRitz` one, so that a trained model can always `encode`."""
        has_one = any(isinstance(callback, FitRitz) for callback in self.trainer.callbacks)  # type: ignore[attr-defined]
        fits = isinstance(self.trainer.datamodule, ViewsDataModule)  # type: ignore[attr-defined]
        return [KeepFreedMemory(), *([] if has_one or not fits else [FitRitz()])]

    def configure_optimizers(self) -> Any:
        optimizer = build_optimizer(self.model, self.optimizer, lr=self.lr, weight_decay=self.weight_decay)
        total = int(self.trainer.estimated_stepping_batches)
        scheduler = warmup_cosine(optimizer, total_steps=total, warmup_steps=round(self.warmup * total))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["model_config"] = self.model.config
        checkpoint["optimizer"] = self.optimizer
        checkpoint["generator_states"] = generator_states()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        fitting = self.trainer.state.fn == "fit"
        (self.check_resume if fitting else self.check_checkpoint)(checkpoint)
        restore_generators(checkpoint["generator_states"])
