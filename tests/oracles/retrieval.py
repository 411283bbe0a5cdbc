"""Search, funnels and bit budgets from their definitions, one item at a time; the package is never imported."""

import math

import numpy as np


def score(query: np.ndarray, item: np.ndarray, m: int, metric: str, eigenvalues: np.ndarray | None = None) -> float:
    q, x = query[:m].astype(np.float64), item[:m].astype(np.float64)
    if eigenvalues is not None:
        root = np.sqrt(np.maximum(eigenvalues[:m], 0))
        q, x = q * root, x * root
    product = float(sum(a * b for a, b in zip(q, x, strict=True)))
    if metric == "inner_product":
        return product
    lengths = math.sqrt(float(q @ q)) * math.sqrt(float(x @ x))
    return product / lengths if lengths else 0.0


def search(
    queries: np.ndarray,
    gallery: np.ndarray,
    k: int,
    m: int,
    metric: str = "cosine",
    eigenvalues: np.ndarray | None = None,
    among: list[list[int]] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Scores and rows (Q, k), best first, among all rows or those listed for each query."""
    scores, rows = [], []
    for number, query in enumerate(queries):
        candidates = range(len(gallery)) if among is None else among[number]
        found = sorted(((score(query, gallery[i], m, metric, eigenvalues), -i) for i in candidates), reverse=True)[:k]
        scores.append([value for value, _ in found])
        rows.append([-i for _, i in found])
    return np.array(scores), np.array(rows)


def funnel(
    queries: np.ndarray, gallery: np.ndarray, k: int, stages: list[int], shortlists: list[int]
) -> tuple[np.ndarray, np.ndarray]:
    among = None
    for m, keep in zip(stages, [*shortlists, k], strict=True):
        scores, rows = search(queries, gallery, keep, m, among=among)
        among = rows.tolist()
    return scores, rows


def best_bits(variances: list[float], distortion: list[float], n_bits: int) -> float:
    """Least sum of variance x distortion[bits] over all ways to share out exactly `n_bits`, by trying every one."""
    if len(variances) == 1:
        return variances[0] * distortion[n_bits] if n_bits < len(distortion) else math.inf
    return min(
        variances[0] * distortion[b] + best_bits(variances[1:], distortion, n_bits - b)
        for b in range(min(n_bits, len(distortion) - 1) + 1)
    )
