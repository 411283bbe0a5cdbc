"""What each code length costs: kNN accuracy and retrieval when codes are cut to their first d coordinates.

Codes are ordered by falling eigenvalue, so cutting is slicing. A representation without such an order is measured the
same way, and its principal components (`baselines.principal_components`) are the rival of the same length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from torch import Tensor

from neigenmaps.errors import InputError, ShapeError
from neigenmaps.evaluation.knn import knn_accuracy
from neigenmaps.evaluation.threads import few_threads
from neigenmaps.functional.ranking import retrieval_map


@dataclass(frozen=True)
class TruncationCurve:
    """kNN accuracy, mean average precision and, where measured, a linear probe's accuracy at every code length of `dims`.

    All in [0, 1].
    """

    dims: tuple[int, ...]
    knn_accuracy: tuple[float, ...]
    retrieval_map: tuple[float, ...]
    linear_probe: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        probed = self.dims if self.linear_probe is None else self.linear_probe
        if not len(self.dims) == len(self.knn_accuracy) == len(self.retrieval_map) == len(probed) >= 1:
            raise ShapeError(
                f"expected as many values as code lengths, got {len(self.dims)} lengths, {len(self.knn_accuracy)} and "
                f"{len(probed)} accuracies and {len(self.retrieval_map)} precisions: give one of each for every length"
            )

    def as_dict(self) -> dict[str, list[int] | list[float]]:
        """Plain lists, ready for JSON; `TruncationCurve(**...)` of them is the way back."""
        return {name: list(values) for name, values in asdict(self).items() if values is not None}


def truncation_curve(
    bank_NK: Tensor,
    bank_labels_N: Tensor,
    queries_QK: Tensor,
    query_labels_Q: Tensor,
    *,
    dims: Sequence[int],
    n_neighbors: int = 10,
) -> TruncationCurve:
    """Classify the held-out queries by the bank, and retrieve from the bank with them, at every length of `dims`.

    Both use cosine similarity of the cut codes. Negative labels are unlabelled: left out on either side.

    Raises:
        InputError: a length below 1 or beyond the code width, no lengths, or what kNN and retrieval refuse.
        ShapeError, NonFiniteError: as kNN and retrieval.
    """
    width = min(bank_NK.shape[-1], queries_QK.shape[-1])
    if not dims or not all(1 <= d <= width for d in dims):
        raise InputError(f"expected code lengths between 1 and the code width {width}, got {list(dims)}: drop the rest")
    accuracy, precision = [], []
    with few_threads(len(bank_NK) * len(queries_QK)):
        for d in dims:
            bank, queries = bank_NK[:, :d], queries_QK[:, :d]
            accuracy.append(knn_accuracy(bank, bank_labels_N, queries, query_labels_Q, n_neighbors=n_neighbors))
            precision.append(retrieval_map(queries, bank, query_labels_Q, bank_labels_N).mean_average_precision)
    return TruncationCurve(tuple(dims), tuple(accuracy), tuple(precision))


def code_lengths(width: int) -> list[int]:
    """Powers of two from 2 to below `width`, then `width` itself.

    >>> code_lengths(10)
    [2, 4, 8, 10]
    """
    if width < 1:
        raise InputError(f"expected a code width of 1 or more, got {width}: pass the number of columns")
    return [2**power for power in range(1, (width - 1).bit_length())] + [width]
