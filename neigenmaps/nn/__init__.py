"""Torch modules: objectives with hyper-parameters, encoders, projector, the model that encodes."""

from neigenmaps.nn.encoders import DigitsCNN, build_backbone, build_projector
from neigenmaps.nn.model import NeuralEigenmapModel, Outputs
from neigenmaps.nn.objectives import (
    BarlowTwins,
    NestedLowRank,
    NeuralEigenmap,
    Objective,
    PaperNeuralEigenmap,
    Rival,
    SimCLR,
    SpectralContrastive,
    VICReg,
)

__all__ = [
    "BarlowTwins",
    "DigitsCNN",
    "NestedLowRank",
    "NeuralEigenmap",
    "NeuralEigenmapModel",
    "Objective",
    "Outputs",
    "PaperNeuralEigenmap",
    "Rival",
    "SimCLR",
    "SpectralContrastive",
    "VICReg",
    "build_backbone",
    "build_projector",
]
