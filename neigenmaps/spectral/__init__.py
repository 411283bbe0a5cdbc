"""Graphs over point clouds, and the functions that live on them. Start at `graph`, then `eigenbasis`."""

from neigenmaps.spectral.components import Bridge
from neigenmaps.spectral.graph import PAPER_GRAPHS, GraphSettings, NeighborGraph, neighbor_graph

__all__ = ["PAPER_GRAPHS", "Bridge", "GraphSettings", "NeighborGraph", "neighbor_graph"]
