"""Figures are drawn from real digits without a warning, land whole, and show the images they claim to show."""

import inspect
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_digits

from neigenmaps.errors import InputError, NonFiniteError, ShapeError
from neigenmaps.evaluation import TruncationCurve, flatten_images, principal_components
from neigenmaps.reporting import figures, plot_eigenfunction_gallery, plot_eigenvalues, plot_truncation

PNG = b"\x89PNG\r\n\x1a\n"
CURVES = {
    "ours": [TruncationCurve((2, 4, 64, 70), (0.5, 0.6 + s, 0.7, 0.9), (0.4, 0.5, 0.5, 0.6)) for s in (0, 0.1)],
    "PCA": TruncationCurve((2, 4), (0.4, 0.5), (0.3, 0.4)),
    "raw pixels": TruncationCurve((64,), (0.95,), (0.6,)),
}


def assert_png(path: Path) -> None:
    assert path.read_bytes().startswith(PNG)
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    assert matplotlib.image.imread(path).std() > 0.05  # something is drawn


def test_truncation_curves(tmp_path: Path, drawn: list[Figure]) -> None:
    path = tmp_path / "new" / "curve.png"
    plot_truncation(CURVES, path)
    assert_png(path)
    accuracy, precision = drawn[0].axes
    ours, pca, raw = accuracy.lines
    np.testing.assert_allclose(ours.get_xydata(), [[2, 50], [4, 65], [64, 70], [70, 90]])
    assert pca.get_label() == "PCA"
    assert raw.get_linestyle() == ":"
    assert list(raw.get_ydata()) == [95, 95]
    assert len(accuracy.collections) == 1  # one band, for the method with seeds
    assert len(precision.collections) == 0  # seeds that agree have none
    assert list(accuracy.get_xticks()) == [2, 4, 70]  # 64 would touch 70
    assert [text.get_text() for text in drawn[0].legends[0].texts] == ["ours", "PCA", "raw pixels (64)"]


def test_a_level_alone_can_be_drawn(tmp_path: Path) -> None:
    plot_truncation({"raw pixels": CURVES["raw pixels"]}, tmp_path / "curve.png")
    plot_truncation(CURVES, tmp_path / "curve.png", levels=())
    assert (tmp_path / "curve.png").read_bytes().startswith(PNG)


def test_eigenvalues(tmp_path: Path, drawn: list[Figure]) -> None:
    plot_eigenvalues({"a": torch.linspace(1, 0, 100), "b": torch.tensor([0.5])}, tmp_path / "spectrum.png")
    assert_png(tmp_path / "spectrum.png")
    assert [len(line.get_xdata()) for line in drawn[0].axes[0].lines] == [100, 1]
    assert drawn[0].axes[0].get_ylim()[0] <= 0


def test_gallery_of_digits(tmp_path: Path) -> None:
    images = torch.tensor(load_digits().images).float()[:300, None]
    (codes,) = principal_components(flatten_images(images), n_components=10)
    plot_eigenfunction_gallery(codes, images, tmp_path / "gallery.png")
    assert_png(tmp_path / "gallery.png")


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_gallery_orders_images_by_value(tmp_path: Path, drawn: list[Figure], dtype: torch.dtype) -> None:
    """Image i is the flat grey i: one function rises with i, the other falls."""
    n = 6
    grey = torch.arange(n).mul(51 if dtype == torch.uint8 else 1).to(dtype)
    images = grey[:, None, None, None].expand(n, 3, 4, 4)
    codes = torch.stack([torch.arange(n).float(), -torch.arange(n).float()], dim=1)
    plot_eigenfunction_gallery(codes, images, tmp_path / "gallery.png", n_images=2)
    assert_png(tmp_path / "gallery.png")
    tile = np.pad(np.ones((4, 4)), (0, 1))  # four pixels of image, one of border
    shown = (np.asarray(axes.images[0].get_array())[:, :, 0] * 5 * np.tile(tile, (2, 2)) for axes in drawn[0].axes)
    for got, expected in zip(shown, ([[0, 1], [5, 4]], [[4, 5], [1, 0]]), strict=True):
        np.testing.assert_allclose(got, np.kron(expected, tile), atol=1e-5)


def test_pyplot_is_left_alone() -> None:
    # read, not looked up in sys.modules: other libraries in the same test session do import it
    assert "import matplotlib.pyplot" not in inspect.getsource(figures)
    assert "import pyplot" not in inspect.getsource(figures)


def test_wrong_input_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "no.png"
    codes, images = torch.ones(5, 3), torch.ones(5, 1, 4, 4)
    with pytest.raises(InputError, match="one method"):
        plot_truncation({}, path)
    with pytest.raises(InputError, match="one method"):
        plot_eigenvalues({}, path)
    with pytest.raises(ShapeError, match="one row"):
        plot_eigenvalues({"a": torch.ones(0)}, path)
    with pytest.raises(NonFiniteError, match="'a'"):
        plot_eigenvalues({"a": torch.tensor([torch.nan])}, path)
    with pytest.raises(ShapeError, match="one code"):
        plot_eigenfunction_gallery(codes[:4], images, path)
    with pytest.raises(ShapeError, match="channels"):
        plot_eigenfunction_gallery(codes, torch.ones(5, 2, 4, 4), path)
    for sizes in ({"n_functions": 0}, {"n_images": 6}, {"n_images": 0}):
        with pytest.raises(InputError, match="n_functions >= 1"):
            plot_eigenfunction_gallery(codes, images, path, **sizes)
    with pytest.raises(NonFiniteError, match="codes"):
        plot_eigenfunction_gallery(codes / 0, images, path, n_images=2)
    assert list(tmp_path.iterdir()) == []
