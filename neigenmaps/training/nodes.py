"""Nodes instead of images: a residual perceptron reads their features, the graph says how near any two of them are.

`python train.py fit --config configs/cora.yaml`. What is trained sees one node at a time; the graph is only asked for the
kernel between the nodes of a batch, or which two nodes make a pair, so that nodes that come later are embedded by their
features alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import scipy.sparse as sp  # type: ignore[import-untyped]
import torch
import yaml  # type: ignore[import-untyped]
from pytorch_lightning.callbacks import Callback
from torch import Tensor

from neigenmaps.errors import CheckpointError, DataError, GraphWarning, InputError, NonFiniteError, NotFittedError
from neigenmaps.functional.kernel_moments import nested_low_rank_kernel_loss
from neigenmaps.functional.rayleigh_ritz import ritz_from_moments
from neigenmaps.graphs import Graph, NodeKernel, read_graph
from neigenmaps.graphs.network import ResidualMLP
from neigenmaps.graphs.node_kernel import NodeOperator
from neigenmaps.graphs.operators import Rows, WalkOperator, in_chunks, take
from neigenmaps.graphs.settings import check_whole
from neigenmaps.nn import NestedLowRank, Objective
from neigenmaps.nn.encoders import evaluation_mode
from neigenmaps.training.checkpoints import count_the_next_epoch
from neigenmaps.training.cli import EigenmapCLI
from neigenmaps.training.datamodule import RowLoader, RowsDataModule
from neigenmaps.training.gather import gather_rows, global_loss, said_once, share_buffers
from neigenmaps.training.optimizers import (
    OptimizerName,
    build_optimizer,
    check_rates,
    generator_states,
    restore_generators,
    warmup_cosine,
)
from neigenmaps.types import Scaling


class NodesDataModule(RowsDataModule):
    """Batches of nodes with the kernel between them, or of pairs of nodes, drawn anew by (seed, epoch, batch).

    Under DDP every process reads its share of the nodes, and has the kernel between those of all.

    graph: path of an npz file as `neigenmaps.graphs.read_graph` reads it. batch_size: of all processes together.
    source: "kernel", `NodeKernel` of walk_steps, own, rarity, an epoch being all nodes once; or "pairs" of nodes walk_steps
    steps apart, as many an epoch as the graph has edges (own and rarity have no part in it).
    unit_rows: divide the features of every node by their length, as is usual for bags of words.
    """

    unreadable: Sequence[str] = ()  # a graph is one file, read or refused

    def __init__(
        self,
        graph: str,
        batch_size: int = 1024,
        source: Literal["kernel", "pairs"] = "kernel",
        walk_steps: int = 2,
        own: float = 0.6,
        rarity: float = 0.25,
        unit_rows: bool = True,
        seed: int = 0,
    ) -> None:
        check_whole(2, batch_size=batch_size)
        super().__init__(batch_size, seed)
        self.path, self.source, self.walk_steps, self.unit_rows = graph, source, walk_steps, unit_rows
        self.own, self.rarity = own, rarity

    def setup(self, stage: str | None = None) -> None:
        """Read the graph, once: `graph`, and `rows`, the features as the network reads them."""
        if hasattr(self, "graph"):
            return
        with said_once(GraphWarning):
            graph = read_graph(self.path)
        if graph.features is None:
            raise DataError(f"expected features of the nodes in {self.path}, found none: add x, one row for every node")
        self.per_epoch, what = (len(graph), "nodes") if self.source == "kernel" else (graph.n_edges, "edges")
        if self.per_epoch < self.batch_size:
            raise InputError(f"batch_size {self.batch_size} exceeds the {self.per_epoch} {what}: lower data.batch_size")
        self.rows = unit_rows(graph.features) if self.unit_rows else graph.features
        self.operator = self._operator(graph)
        self.graph: Graph = graph

    def train_dataloader(self) -> RowLoader:
        return self.training_rows(self.per_epoch)

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Tensor]:
        index_B, device = batch["index"], batch["index"].device
        if isinstance(self.operator, NodeOperator):
            nodes_G = gather_rows(index_B).cpu()  # of the global batch: most of its pairs are of two processes
            views_1BF = take(self.rows, index_B.cpu())[None]
            return {"views": views_1BF.to(device), "kernel": self.operator.block(nodes_G).to(device)}
        ends = self.operator.pairs(len(index_B), torch.Generator().manual_seed(batch["seed"]))
        return {"views": torch.stack([take(self.rows, end) for end in ends]).to(device)}

    def _operator(self, graph: Graph) -> NodeOperator | WalkOperator:
        device = torch.device("cpu")
        if self.source == "kernel":
            kernel = NodeKernel(graph, steps=self.walk_steps, own=self.own, rarity=self.rarity)
            return NodeOperator(self.rows, kernel, shift=0.0, device=device)
        return WalkOperator(self.rows, graph.adjacency, steps=self.walk_steps, shift=0.0, device=device)


class NodesModule(pl.LightningModule):
    """Trains a `ResidualMLP` on nodes and their kernel, or on pairs of nodes. in_features: how many numbers a node has.

    objective: `NestedLowRank` when None; any for pairs, for the kernel that one alone, sequential. lr: peak learning rate.
    warmup: share of all steps before it is reached. scaling: of codes, as of `NeuralEigenmap`.
    """

    ritz_rotation: Tensor
    ritz_mean: Tensor
    eigenvalues: Tensor

    def __init__(
        self,
        in_features: int,
        width: int = 64,
        hidden: int = 256,
        depth: int = 1,
        batch_norm: bool = True,
        drop_features: float = 0.0,
        objective: Objective | None = None,
        optimizer: OptimizerName = "adamw",
        lr: float = 2e-3,
        weight_decay: float = 0.0,
        warmup: float = 0.1,
        scaling: Scaling | Literal["eigenvalue"] = "eigenvalue",
    ) -> None:
        super().__init__()
        if not 0 <= warmup < 1:
            raise InputError(f"expected warmup as a share of all steps, in [0, 1), got {warmup}")
        check_rates(lr, weight_decay)
        self.config: dict[str, Any] = {
            "in_features": in_features,
            "outputs": width,
            "hidden": hidden,
            "depth": depth,
            "batch_norm": batch_norm,
            "drop_features": drop_features,
        }
        self.network = ResidualMLP(**self.config)
        self.objective = NestedLowRank() if objective is None else objective
        self.optimizer: OptimizerName = optimizer
        self.lr, self.weight_decay, self.warmup = lr, weight_decay, warmup
        self.scaling = scaling
        self.register_buffer("ritz_rotation", torch.zeros(width, width))
        self.register_buffer("ritz_mean", torch.zeros(width))
        self.register_buffer("eigenvalues", torch.zeros(width))

    def setup(self, stage: str) -> None:
        data: NodesDataModule = self.trainer.datamodule  # type: ignore[attr-defined]
        rows, objective = data.rows, self.objective
        sequential = isinstance(objective, NestedLowRank) and objective.nesting == "sequential"
        if data.source == "kernel" and not sequential:
            raise InputError(
                f"expected the objective NestedLowRank with nesting sequential for a kernel, got {objective}: set data.source to "
                "pairs, with which every objective works"
            )
        if rows.shape[1] != self.config["in_features"]:
            raise InputError(
                f"the nodes have {rows.shape[1]} features, the model expects {self.config['in_features']}: set "
                f"model.in_features to {rows.shape[1]}"
            )
        sparse = sp.issparse(rows)
        mean = float((rows.multiply(rows) if sparse else rows.square()).mean())
        self.network.set_units(self.network.center_F, torch.tensor(mean**0.5 or 1.0))

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        codes_VBK = self.network(batch["views"].flatten(0, 1)).codes.unflatten(0, batch["views"].shape[:2])
        if "kernel" in batch:
            result = nested_low_rank_kernel_loss(gather_rows(codes_VBK[0]), batch["kernel"])
        else:
            result = global_loss(self.objective, *codes_VBK)
        self.log("train/loss", result.loss, prog_bar=True)
        self.log("train/alignment", result.alignment)
        self.log("train/orthogonality", result.orthogonality)
        return {"loss": result.loss, "codes": codes_VBK.detach()}

    def on_train_start(self) -> None:
        count_the_next_epoch(self.trainer)

    def on_train_epoch_end(self) -> None:
        loss = self.trainer.callback_metrics["train/loss"]
        if not torch.isfinite(loss):
            raise NonFiniteError(f"the loss is {loss.item()} in epoch {self.current_epoch}: lower lr, or raise warmup")

    def solve(self, data: NodesDataModule) -> None:
        """Order the functions by Rayleigh-Ritz over all nodes (or a sample of pairs, where not all outputs can be kept)."""
        share_buffers(self.network)
        with evaluation_mode(self.network):
            moments, sign_rows = data.operator.moments(
                self._codes, torch.Generator().manual_seed(self.trainer.current_epoch)
            )
        ritz = ritz_from_moments(moments, sign_rows=sign_rows)
        self.ritz_rotation.zero_()[:, : ritz.rank] = ritz.rotation
        self.eigenvalues.zero_()[: ritz.rank] = ritz.eigenvalues
        self.ritz_mean.copy_(ritz.mean)

    def encode(self, rows: Rows) -> Tensor:
        """Ordered codes of any nodes by their features, in the scaling asked for, (N, F) -> (N, K), on the CPU."""
        if not self.eigenvalues.any():
            raise NotFittedError("these functions have not been put in order yet: train to the end, or call solve")
        with evaluation_mode(self.network):
            codes_NK = in_chunks(self._codes, rows, torch.device("cpu"))
        ordered_NK = (codes_NK - self.ritz_mean.cpu()) @ self.ritz_rotation.cpu()
        power = {"unit": 0.0, "sqrt_eigenvalue": 0.5, "eigenvalue": 1.0}[self.scaling]
        return ordered_NK * self.eigenvalues.cpu().clamp_min(0) ** power

    def check_checkpoint(self, checkpoint: Mapping[str, Any]) -> None:
        """CheckpointError when a checkpoint holds another network than this one."""
        if checkpoint.get("model_config") != self.config:
            raise CheckpointError(
                f"the checkpoint holds another model, {checkpoint.get('model_config')}, than this one, {self.config}: use its "
                "run folder's config.yaml"
            )

    check_resume = check_checkpoint

    def configure_optimizers(self) -> Any:
        optimizer = build_optimizer(self.network, self.optimizer, lr=self.lr, weight_decay=self.weight_decay)
        total = int(self.trainer.estimated_stepping_batches)
        scheduler = warmup_cosine(optimizer, total_steps=total, warmup_steps=round(self.warmup * total))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["model_config"] = self.config
        checkpoint["generator_states"] = generator_states()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.check_checkpoint(checkpoint)
        restore_generators(checkpoint["generator_states"])

    def _codes(self, rows_BF: Tensor) -> Tensor:
        codes_BK: Tensor = self.network(rows_BF.to(self.ritz_mean.device)).codes
        return codes_BK.cpu()


class SolveNodes(Callback):
    """`solve` when training ends. checkpoint: a file to write once more afterwards, so that the order is in it."""

    def __init__(self, checkpoint: Path | None = None) -> None:
        self.checkpoint = checkpoint

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        pl_module.solve(trainer.datamodule)  # type: ignore[attr-defined, operator]
        if self.checkpoint is not None:
            trainer.save_checkpoint(self.checkpoint)


class NodesCLI(EigenmapCLI):
    """The same command line over NodesModule and NodesDataModule."""

    module_class = NodesModule
    data_class = NodesDataModule

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        return {name: skip for name, skip in EigenmapCLI.subcommands().items() if name == "fit"}

    def ordering(self, pairs: int, checkpoint: Path | None) -> Callback:
        return SolveNodes(checkpoint)


def unit_rows(features: Tensor | sp.csr_matrix) -> Tensor | sp.csr_matrix:
    """Every row divided by its length; rows of zeros stay."""
    if isinstance(features, Tensor):
        return torch.nn.functional.normalize(features, dim=1)
    squares_N1 = features.multiply(features).sum(axis=1).A1
    inverse = torch.from_numpy(squares_N1).clamp_min(1e-30).rsqrt().numpy()
    return sp.diags(inverse.astype("float32")) @ features


def is_about_nodes(args: Sequence[str]) -> bool:
    """Whether the configuration on a command line names a graph: `data.graph`, in a file or as an option."""
    paths = [after for before, after in itertools.pairwise(args) if before == "--config"]
    paths += [arg.removeprefix("--config=") for arg in args if arg.startswith("--config=")]
    if any(arg.startswith("--data.graph") for arg in args):
        return True
    for path in filter(lambda path: Path(path).is_file(), paths):
        try:
            content = yaml.safe_load(Path(path).read_text())
        except yaml.YAMLError:  # the parser proper says what is wrong with it
            continue
        if isinstance(content, dict) and isinstance(content.get("data"), dict) and "graph" in content["data"]:
            return True
    return False
