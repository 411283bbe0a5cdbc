"""Two encoders of one latent cloud, with the matching known: what the benchmarks of `alignment` are timed and scored on."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class PlantedPair:
    """x_NF and y_NG show the same N things; row i of X is row partner_N[i] of Y."""

    x_NF: NDArray[np.float32]
    y_NG: NDArray[np.float32]
    partner_N: NDArray[np.int64]

    def anchors(self, n_anchors: int, rng: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        rows = rng.choice(len(self.x_NF), n_anchors, replace=False)
        return rows, self.partner_N[rows]


def planted_pair(n_rows: int, width: int, seed: int, *, noise: float = 0.02) -> PlantedPair:
    """tanh of two random maps of 20 Gaussian clusters in 12 dimensions, plus noise; Y's rows are shuffled."""
    rng = np.random.default_rng(seed)
    centres = 2 * rng.standard_normal((20, 12))
    latent = centres[rng.integers(20, size=n_rows)] + rng.standard_normal((n_rows, 12))
    spaces = []
    for _ in range(2):
        mixing = rng.standard_normal((12, width)) / np.sqrt(12)
        seen = np.tanh(latent @ mixing)
        spaces.append((seen + noise * rng.standard_normal(seen.shape)).astype(np.float32))
    order = rng.permutation(n_rows)
    return PlantedPair(spaces[0], spaces[1][order], np.argsort(order))
