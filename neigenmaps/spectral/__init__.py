"""Graphs over point clouds, and the functions that live on them. Start at `graph`, then `eigenbasis`."""

from neigenmaps.spectral.components import Bridge
from neigenmaps.spectral.descriptors import geodesic_distances, heat_kernel_signature
from neigenmaps.spectral.eigenbasis import Eigenbasis, laplacian_eigenbasis
from neigenmaps.spectral.graph import PAPER_GRAPHS, GraphSettings, NeighborGraph, neighbor_graph
from neigenmaps.spectral.nearest import NearestRows, nearest_rows
from neigenmaps.spectral.nystrom import nystrom_extension

__all__ = [
    "PAPER_GRAPHS",
    "Bridge",
    "Eigenbasis",
    "GraphSettings",
    "NearestRows",
    "NeighborGraph",
    "geodesic_distances",
    "heat_kernel_signature",
    "laplacian_eigenbasis",
    "nearest_rows",
    "neighbor_graph",
    "nystrom_extension",
]
