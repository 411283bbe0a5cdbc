import numpy as np
import pytest
import scipy.linalg
import torch

from neigenmaps.errors import ShapeError
from neigenmaps.functional.linalg import column_signs, principal_cosines, sorted_eigh


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_sorted_eigh_falls_and_rebuilds_the_matrix() -> None:
    half = normal(6, 6)
    matrix = half + half.T
    values, vectors = sorted_eigh(matrix)
    assert (values.diff() <= 0).all()
    torch.testing.assert_close((vectors * values) @ vectors.T, matrix, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(values.numpy(), scipy.linalg.eigvalsh(matrix.numpy())[::-1], rtol=1e-10)


def test_sorted_eigh_reads_both_triangles() -> None:
    """A moment that is symmetric only up to rounding, or not at all, counts with both halves."""
    matrix = normal(5, 5)
    torch.testing.assert_close(sorted_eigh(matrix)[0], sorted_eigh(matrix.T)[0])
    torch.testing.assert_close(sorted_eigh(matrix)[0], sorted_eigh((matrix + matrix.T) / 2)[0])


def test_column_signs_make_the_largest_entry_positive() -> None:
    values = torch.tensor([[1.0, 2.0, 0.0, -5.0], [-3.0, 1.0, 0.0, 5.0]])
    assert column_signs(values).tolist() == [-1, 1, 1, -1]  # a tie goes to the first row


@pytest.mark.parametrize("shape", [(4,), (0, 3), (2, 2, 2)])
def test_column_signs_need_rows(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match="expected function values"):
        column_signs(torch.zeros(shape))


def test_principal_cosines_equal_scipy() -> None:
    a, b = normal(20, 3), normal(20, 5, seed=1)
    expected = np.sort(np.cos(scipy.linalg.subspace_angles(a.numpy(), b.numpy())))[::-1]
    np.testing.assert_allclose(principal_cosines(a, b).numpy(), expected, rtol=1e-10)


def test_principal_cosines_of_planted_angles() -> None:
    """Span of e1, e2 against e1 and e2 turned by 60 degrees towards e3: cosines 1 and 1/2."""
    eye = torch.eye(4, dtype=torch.float64)
    turned = torch.stack([eye[0], 0.5 * eye[1] + 0.75**0.5 * eye[2]], dim=1)
    expected = torch.tensor([1.0, 0.5], dtype=torch.float64)
    torch.testing.assert_close(principal_cosines(eye[:, :2], turned), expected)


def test_principal_cosines_are_blind_to_the_basis_of_either_span() -> None:
    a, b = normal(20, 3), normal(20, 3, seed=1)
    torch.testing.assert_close(principal_cosines(a @ normal(3, 3, seed=2), b), principal_cosines(a, b))
    torch.testing.assert_close(principal_cosines(a, a @ normal(3, 3, seed=2)), torch.ones(3, dtype=torch.float64))


def test_principal_cosines_weigh_rows_like_repeats() -> None:
    a, b, counts = normal(6, 2), normal(6, 2, seed=1), torch.tensor([1, 3, 2, 1, 4, 2])
    repeated = principal_cosines(a.repeat_interleave(counts, 0), b.repeat_interleave(counts, 0))
    torch.testing.assert_close(principal_cosines(a, b, counts.double()), repeated)


def test_principal_cosines_need_the_same_rows() -> None:
    with pytest.raises(ShapeError, match="same rows"):
        principal_cosines(torch.zeros(4, 2), torch.zeros(5, 2))
