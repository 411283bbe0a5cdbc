"""Numbers about representations: k nearest neighbours, retrieval by code length, linear probe, rank.

Start at `truncation.truncation_curve`. All functions take tensors of codes and give plain numbers.
"""

from neigenmaps.evaluation.baselines import flatten_images, principal_components
from neigenmaps.evaluation.knn import knn_accuracy, knn_predict
from neigenmaps.evaluation.linear_probe import LinearProbe, fit_linear_probe, linear_probe_accuracy
from neigenmaps.evaluation.rank import (
    alpha_req,
    distinct_count,
    effective_rank,
    is_ordered,
    offdiagonal_rms,
    rankme,
)
from neigenmaps.evaluation.truncation import TruncationCurve, code_lengths, truncation_curve

__all__ = [
    "LinearProbe",
    "TruncationCurve",
    "alpha_req",
    "code_lengths",
    "distinct_count",
    "effective_rank",
    "fit_linear_probe",
    "flatten_images",
    "is_ordered",
    "knn_accuracy",
    "knn_predict",
    "linear_probe_accuracy",
    "offdiagonal_rms",
    "principal_components",
    "rankme",
    "truncation_curve",
]
