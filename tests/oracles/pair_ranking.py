"""Cross-space retrieval from the definitions, one query and one item at a time, and gallery size by enumeration."""

import itertools
import math

import numpy as np
from numpy.typing import NDArray


def cosines(queries: NDArray[np.float64], gallery: NDArray[np.float64]) -> NDArray[np.float64]:
    unit = [rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-300) for rows in (queries, gallery)]
    return unit[0] @ unit[1].T


def csls(queries: NDArray[np.float64], gallery: NDArray[np.float64], k: int) -> NDArray[np.float64]:
    """2 cos(q, g) - r(q) - r(g), both neighbourhood terms written out."""
    scores = cosines(queries, gallery)
    out = np.empty_like(scores)
    for q in range(len(queries)):
        for g in range(len(gallery)):
            near_q = np.sort(scores[q])[::-1][:k].mean()
            near_g = np.sort(scores[:, g])[::-1][:k].mean()
            out[q, g] = 2 * scores[q, g] - near_q - near_g
    return out


def first_rank_and_precision(scores: NDArray[np.float64], relevant: NDArray[np.bool_]) -> tuple[int, float]:
    """Place of the first match and average precision; equal scores put what does not match first."""
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], bool(relevant[i])))
    places = [place for place, item in enumerate(order, start=1) if relevant[item]]
    return places[0], sum((found + 1) / place for found, place in enumerate(places)) / len(places)


def rank_in_smaller_galleries(scores: NDArray[np.float64], match: int, size: int, k: int) -> float:
    """Share of all galleries of `size` rows with the match in which it is among the first k."""
    others = [i for i in range(len(scores)) if i != match]
    good = 0
    for drawn in itertools.combinations(others, size - 1):
        good += sum(scores[i] >= scores[match] for i in drawn) < k
    return good / math.comb(len(others), size - 1)


def delta_plus(spaces: list[NDArray[np.float64]]) -> float:
    values = []
    for i in range(len(spaces[0])):
        pairs = itertools.combinations([space[i] for space in spaces], 2)
        values.append(np.mean([1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in pairs]))
    return float(np.mean(values))


def gamma_90(spaces: list[NDArray[np.float64]]) -> float:
    norms = []
    for i in range(len(spaces[0])):
        norms.append(np.linalg.norm(np.mean([space[i] / np.linalg.norm(space[i]) for space in spaces], axis=0)))
    return float(np.quantile(norms, 0.9))
