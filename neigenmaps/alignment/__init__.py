"""Maps between representation spaces: pairwise, through functions on graphs, or through one universe for all."""

from neigenmaps.alignment.aligner import AbstractAligner, Certificate
from neigenmaps.alignment.canonical import CCA, GCCA
from neigenmaps.alignment.gpa import GPA
from neigenmaps.alignment.lfm_similarity import LFMSimilarity, lfm_similarity, similarity_basis
from neigenmaps.alignment.pairwise import LinearMap, Procrustes

__all__ = [
    "CCA",
    "GCCA",
    "GPA",
    "AbstractAligner",
    "Certificate",
    "LFMSimilarity",
    "LinearMap",
    "Procrustes",
    "lfm_similarity",
    "similarity_basis",
]
