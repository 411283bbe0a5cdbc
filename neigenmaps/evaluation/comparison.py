"""A trained model beside raw pixels and their principal components, at every code length, on held-out images."""

from torch import Tensor

from neigenmaps.data import DatasetSplits
from neigenmaps.errors import InputError, ShapeError
from neigenmaps.evaluation.baselines import flatten_images, principal_components
from neigenmaps.evaluation.truncation import TruncationCurve, code_lengths, truncation_curve
from neigenmaps.nn import NeuralEigenmapModel

RITZ, PROJECTOR, PCA, PIXELS = "ours, after Rayleigh-Ritz", "ours, as trained", "PCA of pixels", "raw pixels"


def compare_lengths(
    model: NeuralEigenmapModel,
    splits: DatasetSplits,
    outputs: tuple[Tensor, Tensor],
    *,
    max_bank: int = 10_000,
    max_queries: int = 2_000,
) -> dict[str, TruncationCurve]:
    """kNN accuracy and mAP of held-out images against training images, by method and code length.

    outputs: `model.encode(..., space="projector")` of all training and of all test images.
    Ours twice: ordered by Rayleigh-Ritz, and the projector's raw outputs (centred) as trained. Rivals of the same length: the
    leading principal components of the pixels; and all pixels. At most `max_bank` and `max_queries` images, evenly spread.
    Errors: InputError without labels; ShapeError when outputs and images differ in number.
    """
    if [len(part) for part in outputs] != [len(store) for store in splits]:
        raise ShapeError(
            f"expected outputs of {[len(store) for store in splits]} images, got {[len(x) for x in outputs]}"
        )
    bank, queries = splits.train.thin(max_bank), splits.test.thin(max_queries)
    if bank.labels_N is None or queries.labels_N is None:
        raise InputError("a comparison by kNN and retrieval needs labels on training and test images, which these lack")
    raw = outputs[0][splits.train.thin_rows(max_bank)], outputs[1][splits.test.thin_rows(max_queries)]
    pixels = flatten_images(bank.images_NCHW).float(), flatten_images(queries.images_NCHW).float()
    components = min(pixels[0].shape[1], len(bank) - 1, int(model.config["width"]))
    codes: dict[str, tuple[Tensor, ...]] = {
        RITZ: (model.order(raw[0]), model.order(raw[1])),
        PROJECTOR: (raw[0] - raw[0].mean(0), raw[1] - raw[0].mean(0)),
        PCA: principal_components(*pixels, n_components=components),
    }

    def curve(pair: tuple[Tensor, ...], dims: list[int]) -> TruncationCurve:
        a, b = (value.cpu() for value in pair)
        assert bank.labels_N is not None
        assert queries.labels_N is not None
        return truncation_curve(a, bank.labels_N, b, queries.labels_N, dims=dims)

    curves = {name: curve(pair, code_lengths(pair[0].shape[1])) for name, pair in codes.items()}
    curves[PIXELS] = curve(pixels, [pixels[0].shape[1]])
    return curves
