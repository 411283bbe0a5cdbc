import numpy as np
import pytest
import torch

from neigenmaps.errors import InputError
from neigenmaps.spectral import laplacian_eigenbasis, neighbor_graph
from neigenmaps.spectral.descriptors import geodesic_distances, heat_kernel_signature
from oracles import spectral as oracle

X = torch.randn(50, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_geodesics_equal_floyd_warshall() -> None:
    graph = neighbor_graph(X, 5)
    expected = oracle.shortest_paths(graph.lengths.toarray().astype(float))[:, [3, 9]]
    np.testing.assert_allclose(geodesic_distances(graph, torch.tensor([3, 9])), expected, atol=1e-12)
    with pytest.raises(InputError, match="anchors"):
        geodesic_distances(graph, torch.tensor([50]))


def test_heat_kernel_signature_equals_its_sum() -> None:
    basis = laplacian_eigenbasis(neighbor_graph(X, 5), 8)
    got = heat_kernel_signature(basis, torch.tensor([2.0]))[:, 0]
    expected = oracle.heat_kernel_signature(basis.eigenvalues_K.numpy(), basis.eigenvectors_NK.numpy(), 2.0)
    np.testing.assert_allclose(got, expected, rtol=1e-12)
    with pytest.raises(InputError, match="times above 0"):
        heat_kernel_signature(basis, torch.tensor([0.0]))
