"""Maps between representation spaces: pairwise, through functions on graphs, or through one universe for all."""

from neigenmaps.alignment.aligner import AbstractAligner, Certificate
from neigenmaps.alignment.canonical import CCA, GCCA
from neigenmaps.alignment.correspondence import Correspondences
from neigenmaps.alignment.gcpa import GCPA
from neigenmaps.alignment.gpa import GPA
from neigenmaps.alignment.latent_functional_map import LatentFunctionalMap
from neigenmaps.alignment.lfm_similarity import LFMSimilarity, lfm_similarity, similarity_basis, similarity_graph
from neigenmaps.alignment.pairwise import LinearMap, Procrustes
from neigenmaps.alignment.retrieval_metrics import (
    RetrievalTable,
    any_to_any,
    any_to_any_translated,
    cluster_scores,
    difference,
)
from neigenmaps.alignment.stitching import stitch

__all__ = [
    "CCA",
    "GCCA",
    "GCPA",
    "GPA",
    "AbstractAligner",
    "Certificate",
    "Correspondences",
    "LFMSimilarity",
    "LatentFunctionalMap",
    "LinearMap",
    "Procrustes",
    "RetrievalTable",
    "any_to_any",
    "any_to_any_translated",
    "cluster_scores",
    "difference",
    "lfm_similarity",
    "similarity_basis",
    "similarity_graph",
    "stitch",
]
