"""Graphs over point clouds, and the functions that live on them. Start at `graph`, then `eigenbasis`."""

from neigenmaps.spectral.components import Bridge
from neigenmaps.spectral.descriptors import (
    WaveEnergies,
    geodesic_distances,
    geodesic_similarities,
    heat_kernel_signature,
    heat_kernel_to_anchors,
    heat_times,
    label_indicators,
    laplacian_of,
    latent_distances,
    unit_columns,
    wave_energies,
    wave_kernel_signature,
)
from neigenmaps.spectral.eigenbasis import Eigenbasis, laplacian_eigenbasis
from neigenmaps.spectral.graph import PAPER_GRAPHS, GraphSettings, NeighborGraph, neighbor_graph
from neigenmaps.spectral.nearest import NearestRows, nearest_rows
from neigenmaps.spectral.nystrom import extended_eigenbasis, nystrom_extension

__all__ = [
    "PAPER_GRAPHS",
    "Bridge",
    "Eigenbasis",
    "GraphSettings",
    "NearestRows",
    "NeighborGraph",
    "WaveEnergies",
    "extended_eigenbasis",
    "geodesic_distances",
    "geodesic_similarities",
    "heat_kernel_signature",
    "heat_kernel_to_anchors",
    "heat_times",
    "label_indicators",
    "laplacian_eigenbasis",
    "laplacian_of",
    "latent_distances",
    "nearest_rows",
    "neighbor_graph",
    "nystrom_extension",
    "unit_columns",
    "wave_energies",
    "wave_kernel_signature",
]
