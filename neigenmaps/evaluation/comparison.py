"""A trained model beside raw pixels, principal components and random cuts, at every code length, on held-out images."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from neigenmaps.data import DatasetSplits, ImageStore
from neigenmaps.errors import InputError, ShapeError
from neigenmaps.evaluation.baselines import flatten_images, principal_components
from neigenmaps.evaluation.linear_probe import linear_probe_accuracy
from neigenmaps.evaluation.truncation import TruncationCurve, code_lengths, truncation_curve
from neigenmaps.functional.ranking import RetrievalReport, retrieval_report
from neigenmaps.nn import NeuralEigenmapModel

RITZ, PROJECTOR, PCA, PIXELS = "ours, after Rayleigh-Ritz", "ours, as trained", "PCA of pixels", "raw pixels"
OURS_PCA, RANDOM = "ours, after PCA", "ours, random numbers"
Pair = tuple[Tensor, ...]  # codes of the bank, codes of the queries


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
    codes, labels = _codes_by_method(model, splits, outputs, max_bank, max_queries)
    curves = {
        name: _curve(pair, labels, code_lengths(pair[0].shape[1])) for name, pair in codes.items() if name != PIXELS
    }
    curves[PIXELS] = _curve(codes[PIXELS], labels, [codes[PIXELS][0].shape[1]])
    return curves


def compare_rotations(
    model: NeuralEigenmapModel,
    splits: DatasetSplits,
    outputs: tuple[Tensor, Tensor],
    *,
    max_bank: int = 10_000,
    max_queries: int = 2_000,
    max_probed: int = 4_000,
    n_draws: int = 5,
    generator: torch.Generator | None = None,
) -> dict[str, list[TruncationCurve]]:
    """`compare_lengths`, a linear probe at every length, and two more readings of the same outputs.

    These are their principal components, and numbers drawn at random, `n_draws` times, so that a list of one holds the others
    and of `n_draws` these, without a probe. max_probed: training images of a probe. generator: of the draws; seed 0 when None.
    Errors as `compare_lengths`, and InputError for n_draws < 1.
    """
    if n_draws < 1:
        raise InputError(f"expected n_draws >= 1, got {n_draws}: random cuts are drawn")
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    codes, labels = _codes_by_method(model, splits, outputs, max_bank, max_queries)
    trained = codes[PROJECTOR]
    components = min(trained[0].shape[1], len(trained[0]) - 1)
    codes |= {OURS_PCA: principal_components(*trained, n_components=components)}
    probed = splits.train.thin(max_bank).thin_rows(max_probed)
    curves = {}
    for name in (RITZ, PROJECTOR, OURS_PCA, PCA, PIXELS):
        pair = codes[name]
        lengths = code_lengths(pair[0].shape[1]) if name != PIXELS else [pair[0].shape[1]]
        accuracies = [
            linear_probe_accuracy(pair[0][probed, :m], labels[0][probed], pair[1][:, :m], labels[1]) for m in lengths
        ]
        curves[name] = [replace(_curve(pair, labels, lengths), linear_probe=tuple(accuracies))]
    width = trained[0].shape[1]
    lengths = [m for m in code_lengths(width) if m < width]  # all of them is no choice
    orders = [torch.randperm(width, generator=generator) for _ in range(n_draws)] if lengths else []
    random = [_curve(tuple(part[:, order] for part in trained), labels, lengths) for order in orders]
    return curves | ({RANDOM: random} if random else {})


def reports_by_length(
    model: NeuralEigenmapModel,
    splits: DatasetSplits,
    outputs: tuple[Tensor, Tensor],
    *,
    k: int = 10,
    max_bank: int = 10_000,
    max_queries: int = 2_000,
) -> dict[int, RetrievalReport]:
    """Every retrieval score of our ordered codes, by length. Errors as `compare_lengths`, and as `retrieval_report` for k."""
    codes, (bank_labels, query_labels) = _codes_by_method(model, splits, outputs, max_bank, max_queries)
    bank, queries = codes[RITZ]
    return {
        m: retrieval_report(queries[:, :m], bank[:, :m], query_labels, bank_labels, k=k)
        for m in code_lengths(bank.shape[1])
    }


def _codes_by_method(
    model: NeuralEigenmapModel, splits: DatasetSplits, outputs: tuple[Tensor, Tensor], max_bank: int, max_queries: int
) -> tuple[dict[str, Pair], tuple[Tensor, Tensor]]:
    """Codes of a bank and of queries, on the CPU, and labels of both."""
    if [len(part) for part in outputs] != [len(store) for store in splits]:
        raise ShapeError(
            f"expected outputs of {[len(store) for store in splits]} images, got {[len(x) for x in outputs]}"
        )
    bank, queries = splits.train.thin(max_bank), splits.test.thin(max_queries)
    labels = _labels(bank), _labels(queries)
    raw = outputs[0][splits.train.thin_rows(max_bank)], outputs[1][splits.test.thin_rows(max_queries)]
    pixels = flatten_images(bank.images_NCHW).float(), flatten_images(queries.images_NCHW).float()
    components = min(pixels[0].shape[1], len(bank) - 1, int(model.config["width"]))
    codes: dict[str, Pair] = {
        RITZ: (model.order(raw[0]), model.order(raw[1])),
        PROJECTOR: (raw[0] - raw[0].mean(0), raw[1] - raw[0].mean(0)),
        PCA: principal_components(*pixels, n_components=components),
        PIXELS: pixels,
    }
    return {name: tuple(part.cpu() for part in pair) for name, pair in codes.items()}, labels


def _labels(store: ImageStore) -> Tensor:
    if store.labels_N is None:
        raise InputError("a comparison by kNN and retrieval needs labels on training and test images, which these lack")
    return store.labels_N


def _curve(pair: Pair, labels: tuple[Tensor, Tensor], dims: Sequence[int]) -> TruncationCurve:
    return truncation_curve(pair[0], labels[0], pair[1], labels[1], dims=dims)
