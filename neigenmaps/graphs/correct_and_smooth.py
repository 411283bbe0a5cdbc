"""Class probabilities of nodes, mended by the labels known around them. The one step here that passes messages, and optional.

    correct   spread the errors made on labelled nodes:  e <- (1 - a) e_0 + a S e,  then add them, scaled
    smooth    spread the result, known labels in place:  y <- (1 - b) y_0 + b S y

S = D^-1/2 A D^-1/2. Source: Huang et al., "Combining Label Propagation and Simple Models", ICLR 2021.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp  # type: ignore[import-untyped]
import torch
from numpy.typing import NDArray
from torch import Tensor

from neigenmaps.errors import InputError, NonFiniteError, ShapeError
from neigenmaps.graphs.graph import Graph
from neigenmaps.graphs.settings import check_real, check_whole


def correct_and_smooth(
    graph: Graph,
    probabilities_NC: Tensor,
    labelled_L: Tensor,
    labels_L: Tensor,
    *,
    correct_alpha: float = 0.8,
    smooth_alpha: float = 0.8,
    rounds: int = 50,
    scale: float | None = None,
) -> Tensor:
    """Scores (N, C), in the dtype and on the device of the probabilities; the class of a node is the largest.

    labelled_L: row numbers of known nodes. labels_L: their classes, 0..C-1. scale: of the spread errors; when None, every
    unlabelled node's error is brought to the mean size of the errors on labelled nodes ("autoscale"); where no error
    arrives, none is added.
    Raises ShapeError, NonFiniteError; InputError for alphas outside [0, 1), no rounds, rows or labels out of range.
    """
    if not isinstance(graph, Graph) or not all(
        isinstance(one, Tensor) for one in (probabilities_NC, labelled_L, labels_L)
    ):
        given = ", ".join(type(one).__name__ for one in (graph, probabilities_NC, labelled_L, labels_L))
        raise InputError(f"expected a Graph and tensors of probabilities, labelled rows and labels, got {given}")
    check_whole(1, rounds=rounds)
    check_real(0, 1, correct_alpha=correct_alpha, smooth_alpha=smooth_alpha)
    n = len(graph)
    if probabilities_NC.ndim != 2 or len(probabilities_NC) != n or labelled_L.shape != labels_L.shape:
        raise ShapeError(
            f"expected probabilities ({n}, C) and as many labels as labelled rows, got {tuple(probabilities_NC.shape)}, "
            f"{tuple(labels_L.shape)} and {tuple(labelled_L.shape)}"
        )
    if not torch.isfinite(probabilities_NC).all():
        raise NonFiniteError("expected finite probabilities, got NaN or infinity: look at the classifier")
    rows, classes = labelled_L.cpu().numpy(), labels_L.cpu().numpy()
    n_classes = probabilities_NC.shape[1]
    if len(rows) == 0 or rows.min() < 0 or rows.max() >= n or classes.min() < 0 or classes.max() >= n_classes:
        raise InputError(
            f"expected labelled rows in 0..{n - 1} and classes in 0..{n_classes - 1}, at least one of them"
        )
    base_NC = probabilities_NC.detach().cpu().double().numpy()
    truth_LC = np.eye(n_classes)[classes]
    error_NC = np.zeros_like(base_NC)
    error_NC[rows] = truth_LC - base_NC[rows]
    spread_NC = _propagate(graph, error_NC, correct_alpha, rounds)
    if scale is None:
        typical = np.abs(error_NC[rows]).sum(1).mean()
        size_N1 = np.abs(spread_NC).sum(1, keepdims=True)
        spread_NC *= np.divide(typical, size_N1, out=np.zeros_like(size_N1), where=size_N1 > 1e-12)
        spread_NC[rows] = error_NC[rows]
    else:
        spread_NC *= scale
    start_NC = base_NC + spread_NC
    start_NC[rows] = truth_LC
    return torch.from_numpy(_propagate(graph, start_NC, smooth_alpha, rounds)).to(probabilities_NC)


def _propagate(graph: Graph, start_NC: NDArray[np.float64], alpha: float, rounds: int) -> NDArray[np.float64]:
    degree_N = graph.adjacency @ np.ones(len(graph))
    inverse_root = sp.diags(1 / np.sqrt(np.where(degree_N > 0, degree_N, 1.0)))
    step = (inverse_root @ graph.adjacency @ inverse_root).tocsr()
    values_NC = start_NC
    for _ in range(rounds):
        values_NC = (1 - alpha) * start_NC + alpha * (step @ values_NC)
    alone = degree_N == 0
    values_NC[alone] = start_NC[alone]
    return values_NC
