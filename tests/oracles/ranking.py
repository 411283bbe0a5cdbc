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
