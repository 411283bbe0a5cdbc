"""Extension of a basis: its own values at the graph's rows, the written formula elsewhere, symmetry, refusals."""

import numpy as np
import pytest
import torch

from neigenmaps.errors import InputError, NonFiniteError, ShapeError
from neigenmaps.functional.linalg import principal_cosines
from neigenmaps.spectral import laplacian_eigenbasis, neighbor_graph, nystrom_extension
from oracles import spectral as oracle


def cloud(n: int = 200, width: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("normalization", ["symmetric", "random_walk"])
@pytest.mark.parametrize("kernel", ["gaussian", "symmetric_gaussian", "inverse_distance", "distance", "uniform"])
def test_identity_at_rows_of_the_graph(kernel: str, normalization: str) -> None:
    x = torch.cat([cloud(300), cloud(300, seed=1) + 30])  # two pieces: the bridge's ends come back too
    graph = neighbor_graph(x, 8, "euclidean", kernel)
    assert graph.bridges
    basis = laplacian_eigenbasis(graph, 12, normalization)
    torch.testing.assert_close(nystrom_extension(graph, basis, x), basis.eigenvectors_NK, atol=1e-10, rtol=1e-9)
    order = torch.randperm(600, generator=torch.Generator().manual_seed(0))
    again = nystrom_extension(graph, basis, x.numpy()[order])
    torch.testing.assert_close(again, basis.eigenvectors_NK[order], atol=1e-10, rtol=1e-9)


@pytest.mark.parametrize("kernel", ["gaussian", "inverse_distance"])
def test_new_points_get_the_written_sum(kernel: str) -> None:
    x, new = cloud(40), cloud(6, seed=1)
    graph = neighbor_graph(x, 21, "euclidean", kernel)  # more than half: all rows are asked
    basis = laplacian_eigenbasis(graph, 5)
    w = graph.adjacency.toarray().astype(float)
    expected = [
        [
            oracle.extended_value(w, distances, graph.reach_N, 21, kernel, float(value), phi.numpy())
            for value, phi in zip(basis.eigenvalues_K, basis.eigenvectors_NK.T, strict=True)
        ]
        for distances in torch.cdist(new, x).numpy()
    ]
    np.testing.assert_allclose(nystrom_extension(graph, basis, new), expected, rtol=1e-6)  # weights are float32
    walk = laplacian_eigenbasis(graph, 5, "random_walk")
    constant = nystrom_extension(graph, walk, new)[:, 0]
    torch.testing.assert_close(constant, walk.eigenvectors_NK[:6, 0])


def circle(angles: torch.Tensor) -> torch.Tensor:
    return torch.stack([angles.cos(), angles.sin()], 1)


def test_on_a_circle_new_points_get_fourier_modes() -> None:
    """By symmetry the values halfway between rows are the modes there, up to one factor for each frequency."""
    step = 2 * torch.pi / 100
    angles = torch.arange(100, dtype=torch.float64) * step
    graph = neighbor_graph(circle(angles), 10, "euclidean")
    basis = laplacian_eigenbasis(graph, 7)
    extended = nystrom_extension(graph, basis, circle(angles + step / 2))
    modes = [torch.ones(100, dtype=torch.float64)]
    modes += [f((angles + step / 2) * j) for j in (1, 2, 3) for f in (torch.cos, torch.sin)]
    for start, stop in basis.groups:
        cosines = principal_cosines(extended[:, start:stop], torch.stack(modes[start:stop], 1))
        torch.testing.assert_close(cosines, torch.ones(stop - start, dtype=torch.float64), atol=1e-12, rtol=0)


def test_held_out_rows_agree_with_the_basis_that_saw_them() -> None:
    x = torch.cat([cloud(300, 4, s) + 6 * cloud(6, 4, 9)[s] for s in range(6)])
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    seen, unseen = x[order[:1200]], x[order[1200:]]
    whole = laplacian_eigenbasis(neighbor_graph(x[order], 20, "euclidean"), 6)
    graph = neighbor_graph(seen, 20, "euclidean")
    extended = nystrom_extension(graph, laplacian_eigenbasis(graph, 6), unseen)
    assert principal_cosines(extended, whole.eigenvectors_NK[1200:]).square().mean() > 0.98


def test_dtype_of_the_data_and_refusals() -> None:
    x = cloud(80).float()
    graph = neighbor_graph(x, 6)
    basis = laplacian_eigenbasis(graph, 4)
    torch.testing.assert_close(nystrom_extension(graph, basis, x.double()), basis.eigenvectors_NK, atol=1e-9, rtol=0)
    with pytest.raises(ShapeError, match="width 3"):
        nystrom_extension(graph, basis, cloud(5, 4))
    with pytest.raises(NonFiniteError, match="finite"):
        nystrom_extension(graph, basis, cloud(5) / 0)
    with pytest.raises(InputError, match="zero"):
        nystrom_extension(graph, basis, torch.zeros(1, 3))
    with pytest.raises(ShapeError, match="basis of this graph"):
        nystrom_extension(neighbor_graph(x[:70], 6), basis, x)


def test_functions_with_eigenvalues_near_one_are_refused_with_what_is_left() -> None:
    graph = neighbor_graph(cloud(80), 6)
    basis = laplacian_eigenbasis(graph, 80)
    able = int((basis.eigenvalues_K <= 0.95).sum())
    assert 10 < able < 80
    with pytest.raises(InputError, match=rf"extend the first {able}, basis\.first\({able}\)"):
        nystrom_extension(graph, basis, cloud(80))
    kept = basis.first(able)
    torch.testing.assert_close(nystrom_extension(graph, kept, cloud(80)), kept.eigenvectors_NK, atol=1e-9, rtol=0)
    with pytest.raises(InputError, match="1 <= k <= 80"):
        basis.first(81)
