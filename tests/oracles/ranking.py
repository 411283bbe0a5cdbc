"""Retrieval from the definition, in plain Python: one query, one item at a time."""

import math


def average_precision(scores: list[float], relevant: list[bool]) -> float | None:
    """Mean over relevant items of the precision at their position; equal scores put irrelevant items first."""
    if not any(relevant):
        return None
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], relevant[i]))
    found, total = 0, 0.0
    for position, item in enumerate(order, start=1):
        if relevant[item]:
            found += 1
            total += found / position
    return total / found


def in_order(scores: list[float], gains: list[int]) -> list[int]:
    """Gains in falling order of score; equal scores put the smallest gain first."""
    return [gains[i] for i in sorted(range(len(scores)), key=lambda i: (-scores[i], gains[i]))]


def cut_average_precision(gains: list[int], cutoff: int, retrieved_only: bool) -> float:
    """Sorted gains; the divisor counts relevant items in the first `cutoff` only, or all, but not above `cutoff`."""
    found, total = 0, 0.0
    for position, gain in enumerate(gains[:cutoff], start=1):
        if gain:
            found += 1
            total += found / position
    divisor = found if retrieved_only else min(cutoff, sum(1 for gain in gains if gain))
    return total / divisor if divisor else 0.0


def published_map(scores: list[list[float]], shared: list[list[int]], top: int) -> float:
    """The evaluation of the Neural Eigenmaps code, restated: positions of hits among the first `top`, mean of rank / position."""
    total = 0.0
    for row, gains in zip(scores, shared, strict=True):
        hits = [position for position, gain in enumerate(in_order(row, gains)[:top], start=1) if gain]
        if hits:
            total += sum(rank / position for rank, position in enumerate(hits, start=1)) / len(hits)
    return total / len(scores)


def ndcg(gains: list[int], k: int) -> float:
    def dcg(values: list[int]) -> float:
        return sum(value / math.log2(position + 1) for position, value in enumerate(values[:k], start=1))

    best = dcg(sorted(gains, reverse=True))
    return dcg(gains) / best if best else 0.0


def report(scores: list[list[float]], shared: list[list[int]], k: int) -> dict[str, float]:
    """Means over the queries with something to find, every score from its definition."""
    rows = []
    for row, gains in zip(scores, shared, strict=True):
        ordered = in_order(row, gains)
        n_relevant = sum(1 for gain in ordered if gain)
        if not n_relevant:
            continue
        hits = [position for position, gain in enumerate(ordered, start=1) if gain]
        rows.append(
            {
                "mean_average_precision": sum(i / p for i, p in enumerate(hits, start=1)) / n_relevant,
                "mean_average_precision_at_r": sum(i / p for i, p in enumerate(hits, start=1) if p <= n_relevant)
                / n_relevant,
                "precision_at_k": sum(1 for p in hits if p <= k) / k,
                "recall_at_k": sum(1 for p in hits if p <= k) / n_relevant,
                "mean_reciprocal_rank": 1 / hits[0],
                "ndcg_at_k": ndcg(ordered, k),
            }
        )
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}


def cosine(a: list[float], b: list[float]) -> float:
    norms = math.sqrt(sum(x * x for x in a)) * math.sqrt(sum(y * y for y in b))
    return sum(x * y for x, y in zip(a, b, strict=True)) / norms


def mean_average_precision(
    queries: list[list[float]], gallery: list[list[float]], query_labels: list[int], gallery_labels: list[int]
) -> tuple[float, int]:
    """(mean over the queries that have relevant items, number of those that have none)."""
    values = []
    for query, label in zip(queries, query_labels, strict=True):
        scores = [cosine(query, item) for item in gallery]
        values.append(average_precision(scores, [other == label for other in gallery_labels]))
    answered = [value for value in values if value is not None]
    return sum(answered) / len(answered), len(values) - len(answered)
