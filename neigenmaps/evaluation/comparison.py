"""A trained model beside raw pixels and their principal components, at every code length, on held-out images."""

from torch import Tensor

from neigenmaps.data import DatasetSplits
from neigenmaps.errors import InputError
from neigenmaps.evaluation.baselines import flatten_images, principal_components
from neigenmaps.evaluation.truncation import TruncationCurve, truncation_curve
from neigenmaps.nn import NeuralEigenmapModel

LENGTHS = (2, 4, 8, 16, 32, 64)
EIGENMAP, PROJECTOR, PCA, PIXELS = "neural eigenmap", "projector, as trained", "PCA of pixels", "raw pixels"


def compare_lengths(
    model: NeuralEigenmapModel, splits: DatasetSplits, *, max_bank: int = 10_000, max_queries: int = 2_000
) -> dict[str, TruncationCurve]:
    """kNN accuracy and mAP of held-out images against training images, by method and code length.

    Ours twice: ordered by Rayleigh-Ritz, and the projector's raw outputs (centred) as trained. Rivals of the same length: the
    leading principal components of the pixels; and all pixels. At most `max_bank` and `max_queries` images, evenly spread.
    Errors: InputError without labels.
    """
    bank, queries = splits.train.thin(max_bank), splits.test.thin(max_queries)
    if bank.labels_N is None or queries.labels_N is None:
        raise InputError("a comparison by kNN and retrieval needs labels on training and test images, which these lack")
    pixels = flatten_images(bank.images_NCHW).float(), flatten_images(queries.images_NCHW).float()
    components = min(pixels[0].shape[1], len(bank) - 1, int(model.config["width"]))
    raw = model.encode(bank.images_NCHW, space="projector"), model.encode(queries.images_NCHW, space="projector")
    codes: dict[str, tuple[Tensor, ...]] = {
        EIGENMAP: (model.encode(bank.images_NCHW), model.encode(queries.images_NCHW)),
        PROJECTOR: (raw[0] - raw[0].mean(0), raw[1] - raw[0].mean(0)),
        PCA: principal_components(*pixels, n_components=components),
    }

    def curve(pair: tuple[Tensor, ...], dims: list[int]) -> TruncationCurve:
        a, b = (value.cpu() for value in pair)
        assert bank.labels_N is not None
        assert queries.labels_N is not None
        return truncation_curve(a, bank.labels_N, b, queries.labels_N, dims=dims)

    curves = {name: curve(pair, lengths_of(pair[0].shape[1])) for name, pair in codes.items()}
    curves[PIXELS] = curve(pixels, [pixels[0].shape[1]])
    return curves


def lengths_of(width: int) -> list[int]:
    """2, 4, 8, 16, 32, 64 as far as the code goes, and its full length."""
    return [m for m in LENGTHS if m < width] + [width]
