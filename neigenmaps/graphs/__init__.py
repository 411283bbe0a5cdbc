"""The same eigenfunctions where pairs are not views of images: kernels given as functions, graphs, clusters."""

from neigenmaps.graphs.clustering import NeuralSpectralClustering
from neigenmaps.graphs.correct_and_smooth import correct_and_smooth
from neigenmaps.graphs.eigenmap import NeuralEigenmap
from neigenmaps.graphs.graph import Graph, as_graph, graph_from_adjacency, graph_from_edges, read_graph
from neigenmaps.graphs.node_kernel import NodeKernel

__all__ = [
    "Graph",
    "NeuralEigenmap",
    "NeuralSpectralClustering",
    "NodeKernel",
    "as_graph",
    "correct_and_smooth",
    "graph_from_adjacency",
    "graph_from_edges",
    "read_graph",
]
