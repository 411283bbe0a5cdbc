"""A trained model beside raw pixels, principal components and random cuts, at every code length, on held-out images."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

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


class Readings(NamedTuple):
    """One trained model's outputs read in several ways, beside its rivals: what every comparison starts from.

    codes: by method, on the CPU. labels: of the bank and of the queries. bank: the training images that were kept.
    """

    codes: dict[str, Pair]
    labels: tuple[Tensor, Tensor]
    bank: ImageStore


def readings(
    model: NeuralEigenmapModel,
    splits: DatasetSplits,
    outputs: tuple[Tensor, Tensor],
    *,
    max_bank: int = 10_000,
    max_queries: int = 2_000,
) -> Readings:
    """Codes of training images, the bank, and of held-out images, the queries: at most so many, evenly spread.

    outputs: `model.encode(..., space="projector")` of all training and of all test images.
    Ours twice: ordered by Rayleigh-Ritz, and the projector's raw outputs (centred) as trained. Rivals of the same length: the
    leading principal components of the pixels; and all pixels.
    Errors: InputError without labels; ShapeError when outputs and images differ in number.
    """
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
    return Readings({name: tuple(part.cpu() for part in pair) for name, pair in codes.items()}, labels, bank)


def compare_lengths(read: Readings) -> dict[str, TruncationCurve]:
    """kNN accuracy and mAP of the queries against the bank, by method and code length."""
    return {name: _curve(pair, read.labels, _lengths(name, pair)) for name, pair in read.codes.items()}


def compare_rotations(
    read: Readings, *, max_probed: int = 4_000, n_draws: int = 5, generator: torch.Generator | None = None
) -> dict[str, list[TruncationCurve]]:
    """`compare_lengths`, a linear probe at every length, and two more readings of the same outputs.

    These are their principal components, and numbers drawn at random, `n_draws` times, so that a list of one holds the others
    and of `n_draws` these, without a probe. max_probed: training images of a probe. generator: of the draws; seed 0 when None.
    InputError for n_draws < 1.
    """
    if n_draws < 1:
        raise InputError(f"expected n_draws >= 1, got {n_draws}: random cuts are drawn")
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    trained, labels = read.codes[PROJECTOR], read.labels
    width = trained[0].shape[1]
    rotated = principal_components(*trained, n_components=min(width, len(trained[0]) - 1))
    probed = read.bank.thin_rows(max_probed)
    curves = {}
    for name in (RITZ, PROJECTOR, OURS_PCA, PCA, PIXELS):
        pair = rotated if name == OURS_PCA else read.codes[name]
        lengths = _lengths(name, pair)
        accuracies = [
            linear_probe_accuracy(pair[0][probed, :m], labels[0][probed], pair[1][:, :m], labels[1]) for m in lengths
        ]
        curves[name] = [replace(_curve(pair, labels, lengths), linear_probe=tuple(accuracies))]
    lengths = [m for m in code_lengths(width) if m < width]  # all of them is no choice
    orders = [torch.randperm(width, generator=generator) for _ in range(n_draws)] if lengths else []
    random = [_curve(tuple(part[:, order] for part in trained), labels, lengths) for order in orders]
    return curves | ({RANDOM: random} if random else {})


def reports_by_length(read: Readings, *, k: int = 10) -> dict[int, RetrievalReport]:
    """Every retrieval score of our ordered codes, by length. Errors as `retrieval_report` for k."""
    bank, queries = read.codes[RITZ]
    return {
        m: retrieval_report(queries[:, :m], bank[:, :m], *reversed(read.labels), k=k)
        for m in code_lengths(bank.shape[1])
    }


def _lengths(name: str, pair: Pair) -> list[int]:
    width = pair[0].shape[1]
    return [width] if name == PIXELS else code_lengths(width)


def _labels(store: ImageStore) -> Tensor:
    if store.labels_N is None:
        raise InputError("a comparison by kNN and retrieval needs labels on training and test images, which these lack")
    return store.labels_N


def _curve(pair: Pair, labels: tuple[Tensor, Tensor], dims: Sequence[int]) -> TruncationCurve:
    return truncation_curve(pair[0], labels[0], pair[1], labels[1], dims=dims)
