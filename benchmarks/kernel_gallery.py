"""The README's picture of kernels and graphs: the first eigenfunctions of four domains, each a network.

    python benchmarks/kernel_gallery.py --data FOLDER        # FOLDER/mnist/mnist.npz: x_train, x_test

Two moons: the walk on the neighbour graph of 600 points, and what the network says of the plane near them. A circle: a kernel
given as a function, exp(4 cos - 4), drawn as waves on the circle. A graph: the Sierpinski gasket, every node its own feature.
MNIST: the walk on the neighbour graph of all 70,000 images; the five at either end are one in 175, since neighbours at the very
end look alike.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from sklearn.datasets import make_moons

from neigenmaps.files import whole_file
from neigenmaps.graphs import NeuralEigenmap
from neigenmaps.reporting.figures import COLOURS, DPI, GREY

N_FUNCTIONS, N_IMAGES = 5, 5
SIGNED = LinearSegmentedColormap.from_list("signed", [COLOURS[0], "#F4F4F0", COLOURS[1]])
NEAREST = {"n_neighbors": 10, "metric": "euclidean"}


def moons(row: NDArray[np.object_]) -> NeuralEigenmap:
    points = make_moons(600, noise=0.06, random_state=0)[0]
    found = NeuralEigenmap(
        N_FUNCTIONS, kernel="neighbors", kernel_params=NEAREST, hidden=128, max_steps=1500, lr=1e-2, random_state=0
    ).fit(points)
    (left, low), (right, high) = points.min(0) - 0.35, points.max(0) + 0.35
    plane = np.stack(np.meshgrid(np.linspace(left, right, 180), np.linspace(low, high, 110)), axis=-1)
    field, values = found.transform(plane.reshape(-1, 2)).reshape(*plane.shape[:2], -1), found.transform(points)
    away = cKDTree(points).query(plane.reshape(-1, 2))[0].reshape(plane.shape[:2])
    haze = 0.6 * np.exp(-np.square(away / 0.22))  # far from all points the network knows nothing
    for axes, around, at in zip(row, field.transpose(2, 0, 1), values.T, strict=True):
        reach = np.abs(at).max()
        look = {"cmap": SIGNED, "vmin": -reach, "vmax": reach}
        axes.imshow(around, extent=(left, right, low, high), origin="lower", alpha=haze, aspect="auto", **look)
        axes.scatter(*points.T, c=at, s=5, linewidths=0.2, edgecolors="#55555588", **look)
    return found


def circle(row: NDArray[np.object_]) -> NeuralEigenmap:
    angle = np.linspace(0, 2 * np.pi, 400, endpoint=False)
    points = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    found = NeuralEigenmap(
        N_FUNCTIONS, kernel=lambda a, b: torch.exp(4 * (a @ b.T - 1)), hidden=128, max_steps=100, random_state=0
    ).fit(points)
    ring = np.vstack([points, points[:1]])
    for axes, at in zip(row, found.transform(ring).T, strict=True):
        wave = ring * (1 + 0.28 * at)[:, None]
        axes.plot(*ring.T, color="#BBBBBB", linewidth=0.7, linestyle=(0, (3, 3)))
        strokes = LineCollection(np.stack([wave[:-1], wave[1:]], axis=1), cmap=SIGNED, linewidths=2.6, capstyle="round")
        strokes.set_array(at[:-1])
        strokes.set_clim(-1.5, 1.5)
        axes.add_collection(strokes)
        axes.set(xlim=(-1.6, 1.6), ylim=(-1.5, 1.5), aspect="equal")
    return found


def gasket(row: NDArray[np.object_]) -> NeuralEigenmap:
    corners = np.array([[0, 0], [1, 0], [0.5, 0.75**0.5]])
    triangles = corners[None]
    for _ in range(5):
        triangles = np.concatenate([(triangles + corner) / 2 for corner in corners])
    points, number = np.unique(triangles.reshape(-1, 2).round(6), axis=0, return_inverse=True)
    number = number.reshape(-1, 3)
    edges = np.concatenate([number[:, [0, 1]], number[:, [1, 2]], number[:, [0, 2]]])
    names = np.eye(len(points), dtype=np.float32)
    found = NeuralEigenmap(
        N_FUNCTIONS, pairs=edges, solver="eigenvectors", hidden=512, max_steps=200, random_state=0
    ).fit(names)
    for axes, at in zip(row, found.transform(names).T, strict=True):
        reach = np.abs(at).max()
        look = {"cmap": SIGNED, "vmin": -reach, "vmax": reach}
        axes.add_collection(LineCollection(points[edges], colors="#D0D0D0", linewidths=0.5, zorder=1))
        axes.scatter(*points.T, c=at, s=9, linewidths=0.2, edgecolors="#55555588", zorder=2, **look)
        axes.set_aspect("equal")
        axes.margins(0.04)
    return found


def images(row: NDArray[np.object_], folder: Path) -> NeuralEigenmap:
    with np.load(folder / "mnist" / "mnist.npz") as file:
        pictures = np.concatenate([file["x_train"], file["x_test"]])
    rows = torch.from_numpy(pictures.reshape(len(pictures), -1)).float() / 255
    found = NeuralEigenmap(
        N_FUNCTIONS,
        kernel="neighbors",
        kernel_params={"n_neighbors": 30, "metric": "euclidean"},
        solver="eigenvectors",
        random_state=0,
    ).fit(rows)
    for axes, at in zip(row, found.transform(rows).T, strict=True):
        # one of every hundred at either end: neighbours at the very end are copies of one another
        order = at.argsort().numpy()
        step = len(order) // 400
        ends = [order[: N_IMAGES * step : step], order[::-1][: N_IMAGES * step : step]]
        for height, (end, colour) in enumerate(zip(ends, (COLOURS[0], COLOURS[1]), strict=True)):
            strip = np.concatenate(list(pictures[end]), axis=1)
            ink = LinearSegmentedColormap.from_list("ink", ["white", colour])
            axes.imshow(strip, cmap=ink, extent=(0, N_IMAGES, -1.12 * height - 1, -1.12 * height), aspect="equal")
        axes.set(xlim=(0, N_IMAGES), ylim=(-2.12, 0))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "gallery.png")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    figure = Figure(figsize=(8.4, 5.4), layout="constrained")
    grid = figure.subplots(4, N_FUNCTIONS, height_ratios=(1, 1.1, 1.15, 0.7))
    found = {
        "two moons": moons(grid[0]),
        "circle": circle(grid[1]),
        "graph": gasket(grid[2]),
        "MNIST": images(grid[3], arguments.data),
    }
    for row, (name, one) in zip(grid, found.items(), strict=True):
        for axes, value in zip(row, np.asarray(one.eigenvalues_).tolist(), strict=True):
            _bare(axes, f"{value:.4f}")
        row[0].set_ylabel(name, fontsize=9, labelpad=6)
        print(name, [round(value, 4) for value in np.asarray(one.eigenvalues_).tolist()])
    FigureCanvasAgg(figure)
    with whole_file(arguments.out) as path:
        figure.savefig(path, format="png", dpi=DPI)


def _bare(axes: Axes, below: str) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    axes.set_xlabel(below, fontsize=7.5, color=GREY, labelpad=2)


if __name__ == "__main__":
    main()
