"""Pure functions: tensors in, tensors or NamedTuples out; torch and nothing else. Start at `eigenmap`."""

from neigenmaps.functional.eigenmap import (
    EigenmapResult,
    nested_low_rank_loss,
    neural_eigenmap_loss,
    of_row_power,
    paper_neural_eigenmap_loss,
    separating_alpha,
    spectral_contrastive_loss,
)
from neigenmaps.functional.rayleigh_ritz import RitzResult, rayleigh_ritz  # the function hides its module here

__all__ = [
    "EigenmapResult",
    "RitzResult",
    "nested_low_rank_loss",
    "neural_eigenmap_loss",
    "of_row_power",
    "paper_neural_eigenmap_loss",
    "rayleigh_ritz",
    "separating_alpha",
    "spectral_contrastive_loss",
]
