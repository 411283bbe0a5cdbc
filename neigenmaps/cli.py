"""What `train.py` runs: train, then measure by code length, draw, and say where everything lies."""

import json
import logging
import sys
import warnings
from datetime import timedelta
from pathlib import Path

from rich.console import Console
from torch import Tensor

from neigenmaps.console import make_console
from neigenmaps.data import DatasetSplits
from neigenmaps.errors import NeigenmapsError
from neigenmaps.evaluation import code_lengths
from neigenmaps.evaluation.comparison import RITZ, compare_lengths, readings
from neigenmaps.evaluation.linear_probe import linear_probe_accuracy
from neigenmaps.features import FeatureSet, fingerprint_rows
from neigenmaps.files import whole_file
from neigenmaps.nn import NeuralEigenmapModel
from neigenmaps.reporting import (
    eigenvalue_table,
    plot_eigenfunction_gallery,
    plot_eigenvalues,
    plot_truncation,
    truncation_table,
)
from neigenmaps.reporting.run_report import report_run
from neigenmaps.training import EigenmapCLI, EigenmapModule, ViewsDataModule
from neigenmaps.training.nodes import NodesCLI, NodesDataModule, NodesModule, is_about_nodes
from neigenmaps.training.sharding import whole

GALLERY_IMAGES = 2_000  # enough to show extremes of each function
HARMLESS = (  # warnings of Lightning that no user can act on
    "Checkpoint directory .* exists and is not empty",  # config.yaml lies in it already
    "The dirpath has changed",  # a resumed run has a folder of its own
    "FSDP2-wrapped module .* returned a view tensor",  # which nobody changes in place
    "`isinstance\\(treespec, LeafSpec\\)` is deprecated",  # its own use of torch
)


def train(args: list[str] | None = None, *, default_config: Path | None = None) -> None:
    """The command line of `train.py`; `fit` without a --config, or nothing at all, takes `default_config`."""
    args = sys.argv[1:] if args is None else args
    has_config = any(argument.startswith("--config") for argument in args)
    if default_config is not None and not has_config and args[:1] in ([], ["fit"]):
        args = ["fit", "--config", str(default_config), *args[1:]]
    sys.argv = [sys.argv[0], *args]
    for harmless in HARMLESS:
        warnings.filterwarnings("ignore", message=harmless)
    # Lightning's tips and device lists hide the run's own lines
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    try:
        cli = NodesCLI() if is_about_nodes(args) else EigenmapCLI()
        if isinstance(cli, EigenmapCLI) and isinstance(cli.model, EigenmapModule):
            cli.model.model = whole(cli.model.model)  # all processes must ask; one goes on
        if cli.config.subcommand == "fit" and cli.trainer.is_global_zero:
            console = make_console()
            if cli.steps_taken:
                console.print(f"Trained in {timedelta(seconds=round(cli.fit_seconds))}.")
            else:
                console.print(
                    f"Nothing was left to train: the checkpoint has taken all {cli.trainer.global_step} steps. It is measured "
                    "anew; to train on, raise --trainer.max_epochs."
                )
            if isinstance(cli, NodesCLI):
                finish_nodes(cli.model, cli.datamodule, cli.run_folder, console)
            else:
                model = cli.model.model.to(cli.trainer.strategy.root_device)  # Lightning leaves it on the CPU
                finish_run(model, cli.datamodule, cli.run_folder, console)
    except NeigenmapsError as error:
        sys.exit(f"error: {error}")


def finish_nodes(module: NodesModule, data: NodesDataModule, folder: Path, console: Console) -> None:
    """Write the codes of all nodes, and, where the graph has labels and a split, what each code length costs."""
    codes = module.encode(data.rows)
    rank = int((module.eigenvalues != 0).sum())
    codes, eigenvalues, graph = codes[:, :rank].contiguous(), module.eigenvalues[:rank].cpu(), data.graph
    source = {"source": str(data.path), "split": "all nodes"}
    features = FeatureSet(codes, fingerprint_rows(graph.edges()), graph.labels_N, eigenvalues, source)
    features.save(folder / "features" / "nodes.safetensors")
    plot_eigenvalues({"neural eigenmap": eigenvalues}, folder / "eigenvalues.png")
    summary: dict[str, object] = {"eigenvalues": eigenvalues.tolist(), "rank": rank}
    if graph.labels_N is not None and {"train", "test"} <= graph.splits.keys():
        train, test = graph.splits["train"], graph.splits["test"]
        accuracies = {
            length: linear_probe_accuracy(
                codes[train, :length],
                graph.labels_N[train],
                codes[test, :length],
                graph.labels_N[test],
                proportions=True,
            )
            for length in code_lengths(rank)
        }
        summary["linear_probe"] = accuracies
        for length, accuracy in accuracies.items():
            console.print(f"linear probe, first {length:4d} numbers: {100 * accuracy:.1f} %")
    console.print(eigenvalue_table(eigenvalues))
    with whole_file(folder / "summary.json") as path:
        path.write_text(json.dumps(summary, indent=2) + "\n")
    console.print(run_folder_line(folder))


def finish_run(model: NeuralEigenmapModel, data: ViewsDataModule, folder: Path, console: Console) -> None:
    """Export the model and its features, and, where there are labels, measure and draw what each code length costs."""
    splits = data.splits
    model.save_pretrained(folder / "model")
    outputs = encode_splits(model, splits)
    save_features(model, splits, outputs, folder / "features")
    plot_eigenvalues({RITZ: model.eigenvalues.cpu()}, folder / "eigenvalues.png")
    rows = splits.train.thin_rows(GALLERY_IMAGES)
    codes = model.order(outputs[0][rows], scaling="unit").cpu()
    plot_eigenfunction_gallery(
        codes, splits.train.images_NCHW[rows], folder / "eigenfunctions.png", n_functions=min(8, codes.shape[1])
    )
    summary: dict[str, object] = {"eigenvalues": model.eigenvalues.tolist(), "rank": int(model.ritz_rank)}
    if splits.train.labels_N is not None and splits.test.labels_N is not None:
        curves = compare_lengths(readings(model, splits, outputs))
        summary["by_length"] = {name: curve.as_dict() for name, curve in curves.items()}
        plot_truncation(curves, folder / "truncation.png")
        console.print(truncation_table(curves))
    console.print(eigenvalue_table(model.eigenvalues.cpu()))
    with whole_file(folder / "summary.json") as path:
        path.write_text(json.dumps(summary, indent=2) + "\n")
    console.print(run_folder_line(folder))
    console.print(f"Report: [bold]{report_run(folder, splits)}[/bold]")


def run_folder_line(folder: Path) -> str:
    """Where everything lies, and what of it there is."""
    found = [f"{name}/" for name in ("model", "features", "alignment") if (folder / name).is_dir()]
    found += [name for name in ("metrics.csv", "summary.json", "last.ckpt") if (folder / name).is_file()]
    return f"Run folder: [bold]{folder}[/bold] ({', '.join([*found, '*.png'])})"


def encode_splits(model: NeuralEigenmapModel, splits: DatasetSplits) -> tuple[Tensor, Tensor]:
    """The projector's outputs for all training and all test images: the one pass from which everything else follows."""
    train, test = (model.encode(store.images_NCHW, space="projector").cpu() for store in splits)
    return train, test


def save_features(
    model: NeuralEigenmapModel, splits: DatasetSplits, outputs: tuple[Tensor, Tensor], folder: Path
) -> None:
    for name, store, raw in zip(("train", "test"), splits, outputs, strict=True):
        FeatureSet(
            model.order(raw).cpu(),
            store.fingerprint,
            store.labels_N,
            model.eigenvalues[: int(model.ritz_rank)].cpu(),
            {"source": store.source, "split": name},
        ).save(folder / f"{name}.safetensors")
