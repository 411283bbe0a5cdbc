"""The README's picture of retrieval: what each length costs, and what held-out digits find at 8, 32 and all numbers.

    python train.py && python benchmarks/retrieval_picture.py checkpoints/digits/RUN

Diffusion multiplies number j by its eigenvalue to a power, so that later functions count less (`TruncatedIndex(diffusion=)`).
"""

import argparse
from pathlib import Path

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from neigenmaps.data import DatasetSplits, load_splits
from neigenmaps.evaluation import code_lengths, principal_components, truncation_curve
from neigenmaps.evaluation.baselines import flatten_images
from neigenmaps.files import whole_file
from neigenmaps.nn import NeuralEigenmapModel
from neigenmaps.reporting.figures import COLOURS, DPI, MARKERS
from neigenmaps.retrieval import CodeStore, TruncatedIndex

POWER = 16
N_QUERIES, N_RETRIEVED = 3, 12
RIGHT, WRONG = "#009E73", "#D55E00"


def curves(model: NeuralEigenmapModel, splits: DatasetSplits) -> dict[str, tuple[list[int], list[float]]]:
    labels, query_labels = (store.labels_N for store in splits)
    unit = [model.encode(store.images_NCHW, scaling="unit") for store in splits]
    values_K = model.eigenvalues[: unit[0].shape[1]].clamp_min(0)
    pixels = principal_components(*(flatten_images(store.images_NCHW) for store in splits), n_components=64)
    readings = {
        "ours": [codes * values_K.sqrt() for codes in unit],
        f"ours, diffusion {POWER}": [codes * values_K ** (POWER + 0.5) for codes in unit],
        "PCA of pixels": pixels,
    }
    found = {}
    for name, (bank, queries) in readings.items():
        lengths = code_lengths(bank.shape[1])
        curve = truncation_curve(bank, labels, queries, query_labels, dims=lengths)
        found[name] = lengths, [100 * value for value in curve.retrieval_map]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "retrieval_digits.png")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model, splits = NeuralEigenmapModel.from_pretrained(arguments.run / "model"), load_splits("digits")
    figure = Figure(figsize=(8.4, 4.1), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(0.9, 1.4))
    axes = left.subplots()
    for style, (name, (lengths, values)) in enumerate(curves(model, splits).items()):
        axes.plot(lengths, values, color=COLOURS[style], marker=MARKERS[style], markersize=4, linewidth=1.8, label=name)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator([2, 8, 32, 128]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0f}")
    axes.set_ylim(0, 100)
    axes.set_title("retrieval mAP, %", fontsize=10, loc="left")
    axes.set_xlabel("code length")
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8.5, loc="lower center")

    store = CodeStore(model.encode(splits.train.images_NCHW), eigenvalues=model.eigenvalues[: model.available_dims()])
    kinds = [(8, 0.0), (32, 0.0), (store.width, 0.0), (store.width, float(POWER))]
    titles = [f"{m}" if not power else f"{m}, diffusion" for m, power in kinds]
    indexes = [TruncatedIndex(store, m, diffusion=power) for m, power in kinds]
    assert splits.train.labels_N is not None
    assert splits.test.labels_N is not None
    chosen = splits.test.thin_rows(N_QUERIES + 2)[1:-1]
    grid = right.subplots(N_QUERIES * len(kinds), N_RETRIEVED + 1, gridspec_kw={"wspace": 0.05, "hspace": 0.08})
    for place, row in enumerate(chosen.tolist()):
        code = model.encode(splits.test.images_NCHW[row : row + 1])[0]
        for kind, index in enumerate(indexes):
            cells = grid[place * len(kinds) + kind]
            found = torch.from_numpy(index.search(code, N_RETRIEVED).ids)
            images = [splits.test.images_NCHW[row], *splits.train.images_NCHW[found]]
            hits = [None, *(splits.train.labels_N[found] == splits.test.labels_N[row]).tolist()]
            for cell, image, hit in zip(cells, images, hits, strict=True):
                cell.set_xticks([])
                cell.set_yticks([])
                if hit is None and kind:
                    cell.axis("off")
                    continue
                cell.imshow(image[0].numpy(), cmap="gray", interpolation="nearest")
                cell.spines[:].set(color="white" if hit is None else RIGHT if hit else WRONG, linewidth=1.6)
            cells[1].set_ylabel(titles[kind], fontsize=7, rotation=0, ha="right", va="center", labelpad=3)
    right.suptitle("held-out query, then the nearest training digits by 8, 32 and all numbers", fontsize=9)
    FigureCanvasAgg(figure)
    with whole_file(arguments.out) as path:
        figure.savefig(path, format="png", dpi=DPI)


if __name__ == "__main__":
    main()
