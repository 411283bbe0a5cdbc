"""The kernels from their definitions; the loss as the low-rank problem it is; moments as plain sums."""

import numpy as np
import pytest
import torch

from neigenmaps.errors import InputError, NonFiniteError, ShapeError
from neigenmaps.functional.kernel_moments import kernel_moments, nested_low_rank_kernel_loss
from neigenmaps.functional.kernels import arc_cosine_kernel, polynomial_kernel, rbf_kernel
from oracles import graphs as oracle

RNG = np.random.default_rng(0)
X, Y = RNG.standard_normal((7, 3)), RNG.standard_normal((5, 3))
A, B = torch.from_numpy(X), torch.from_numpy(Y)


def test_kernels_from_their_definitions() -> None:
    np.testing.assert_allclose(rbf_kernel(A, B, gamma=0.3), oracle.rbf(X, Y, 0.3), rtol=1e-12)
    expected = np.array([[(0.5 * sum(a * b) + 2) ** 3 for b in Y] for a in X])
    np.testing.assert_allclose(polynomial_kernel(A, B, degree=3, gamma=0.5, coef0=2), expected, rtol=1e-12)
    assert rbf_kernel(A + 1e4, A + 1e4, gamma=1.0).max() <= 1


@pytest.mark.parametrize("order", [0, 1, 2])
def test_arc_cosine_is_a_wide_layer(order: int) -> None:
    sampled = oracle.arc_cosine_by_sampling(X, Y, order, 400_000)
    np.testing.assert_allclose(arc_cosine_kernel(A, B, order=order), sampled, rtol=0.05, atol=0.03)
    same = arc_cosine_kernel(A, A, order=1).diagonal()
    np.testing.assert_allclose(same, (X**2).sum(1), rtol=1e-6)  # J_1(0) = pi


def test_refused_kernel_arguments() -> None:
    for wrong in ({"degree": 0}, {"degree": 1.5}, {"gamma": 0.0}, {"coef0": -1.0}):
        with pytest.raises(InputError, match="degree of at least 1"):
            polynomial_kernel(A, B, **wrong)
    with pytest.raises(InputError, match="gamma"):
        rbf_kernel(A, B, gamma=0)
    with pytest.raises(InputError, match="order"):
        arc_cosine_kernel(A, B, order=3)
    with pytest.raises(ShapeError, match="rows"):
        rbf_kernel(A, B[:, :2], gamma=1)


def kernel_matrix(values: list[float]) -> tuple[torch.Tensor, torch.Tensor]:
    """A symmetric matrix whose operator, the mean over other points, has these eigenvalues; and its eigenvectors."""
    basis = torch.from_numpy(np.linalg.qr(np.random.default_rng(1).standard_normal((6, 6)))[0])
    return basis @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ basis.T, basis


def apart_mean(matrix: torch.Tensor) -> torch.Tensor:
    n = len(matrix)
    return (matrix.sum() - matrix.diagonal().sum()) / (n * (n - 1))


def test_first_function_minimises_the_distance_between_different_points() -> None:
    """One output: the loss is mean_{b != c} (k - f f^T)^2 less the mean of k^2, whatever f."""
    kernel = torch.from_numpy(oracle.rbf(X, X, 0.5))
    f = torch.from_numpy(RNG.standard_normal((7, 1)))
    expected = apart_mean((kernel - f @ f.T).square()) - apart_mean(kernel.square())
    torch.testing.assert_close(nested_low_rank_kernel_loss(f, kernel).loss, expected)


def test_later_functions_see_earlier_ones_and_not_the_other_way() -> None:
    kernel = torch.from_numpy(oracle.rbf(X, X, 0.5))
    f = torch.from_numpy(RNG.standard_normal((7, 2))).requires_grad_()
    nested_low_rank_kernel_loss(f, kernel).loss.backward()
    alone = f.detach()[:, :1].clone().requires_grad_()
    nested_low_rank_kernel_loss(alone, kernel).loss.backward()
    torch.testing.assert_close(f.grad[:, :1], alone.grad)
    second = f.detach()[:, 1:].clone().requires_grad_()
    rest = kernel - f.detach()[:, :1] @ f.detach()[:, :1].T
    apart_mean((rest - second @ second.T).square()).backward()
    torch.testing.assert_close(f.grad[:, 1:], second.grad)


def test_shift_adds_the_identity() -> None:
    kernel = torch.from_numpy(oracle.rbf(X, X, 0.5))
    f = torch.from_numpy(RNG.standard_normal((7, 3)))
    plain, shifted = (nested_low_rank_kernel_loss(f, kernel, shift=shift) for shift in (0.0, 0.7))
    torch.testing.assert_close(shifted.loss, plain.loss - 2 * 0.7 * f.square().mean(0).sum())
    torch.testing.assert_close(shifted.eigenvalues, plain.eigenvalues)


def test_moments_are_plain_sums() -> None:
    kernel, _ = kernel_matrix([3.0, 2, 1, 0.5, 0, -1])
    f = torch.from_numpy(RNG.standard_normal((6, 2)))
    whole = kernel_moments(f, kernel @ f / 6)
    halves = kernel_moments(f[:3], kernel[:3] @ f / 6).merge(kernel_moments(f[3:], kernel[3:] @ f / 6))
    _, second, cross = whole.expectations(center=False)
    expected = sum(kernel[i, j] * torch.outer(f[i], f[j]) for i in range(6) for j in range(6)) / 36
    torch.testing.assert_close(cross, expected)
    torch.testing.assert_close(second, f.T @ f / 6)
    for one, other in zip(whole, halves, strict=True):
        torch.testing.assert_close(one, other)


def test_weighted_moments_count_a_point_as_often_as_its_weight() -> None:
    f, tf = (torch.from_numpy(RNG.standard_normal((3, 2))) for _ in range(2))
    times = torch.tensor([1, 3, 2])
    repeated = kernel_moments(f.repeat_interleave(times, 0), tf.repeat_interleave(times, 0))
    for one, other in zip(kernel_moments(f, tf, times), repeated, strict=True):
        torch.testing.assert_close(one, other)


def test_refused_losses() -> None:
    f = torch.ones(3, 2)
    with pytest.raises(ShapeError, match="kernel of shape"):
        nested_low_rank_kernel_loss(f, torch.ones(3, 2))
    with pytest.raises(NonFiniteError, match="kernel gives NaN"):
        nested_low_rank_kernel_loss(f, torch.full((3, 3), float("nan")))
    with pytest.raises(InputError, match="shift"):
        nested_low_rank_kernel_loss(f, torch.ones(3, 3), shift=-1)
    with pytest.raises(ShapeError, match="one shape"):
        kernel_moments(f, f[:2])
