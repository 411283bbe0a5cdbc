import numpy as np
import pytest
import torch
from pyFM.optimize.base_functions import energy_and_grad_std
from scipy.optimize import fmin_l_bfgs_b

from neigenmaps.errors import InputError, NonFiniteError, ShapeError
from neigenmaps.functional.functional_map import (
    MapTerms,
    MapWeights,
    laplacian_mask,
    multiplication_operators,
    solve_functional_map,
)
from oracles import functional_map as oracle

N_X, N_Y, N_FUNCTIONS = 7, 5, 3
WEIGHTS = MapWeights(descriptors=1.0, laplacian=0.3, commutativity=0.2)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def spectrum(n: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).sort().values


def planted(weights: MapWeights = WEIGHTS, n_x: int = N_X, n_y: int = N_Y, p: int = N_FUNCTIONS) -> MapTerms:
    """Operators are not symmetric, widths differ: nothing in the formula may lean on either."""
    return MapTerms(
        normal(n_x, p),
        normal(n_y, p, seed=1),
        laplacian_mask(spectrum(n_x), spectrum(n_y, seed=1)) + 0.01,
        normal(p, n_x, n_x, seed=2),
        normal(p, n_y, n_y, seed=3),
        weights,
    )


def as_numpy(terms: MapTerms) -> tuple:
    return (*(tensor.numpy() for tensor in terms[:5]), terms.weights)


@pytest.mark.parametrize("solver", ["cholesky", "conjugate_gradient", "auto"])
@pytest.mark.parametrize("fixed", [False, True])
def test_solution_equals_stacked_least_squares(solver: str, fixed: bool) -> None:
    terms = planted()
    column = torch.eye(N_Y, dtype=torch.float64)[0] if fixed else None
    c = solve_functional_map(terms, first_column_L=column, solver=solver)
    expected = oracle.minimum(*as_numpy(terms), first_column=None if column is None else column.numpy())
    np.testing.assert_allclose(c.numpy(), expected, rtol=0, atol=1e-8 * np.abs(expected).max())
    gradient = terms.gradient(c)[:, int(fixed) :]
    assert gradient.norm() <= 1e-10 * terms.gradient(torch.zeros_like(c)).norm()


def test_rows_equal_cholesky_when_nothing_commutes() -> None:
    terms = planted(MapWeights(1.0, 0.3, 0.0))
    rows = solve_functional_map(terms, solver="rows")
    torch.testing.assert_close(rows, solve_functional_map(terms, solver="cholesky"), rtol=1e-10, atol=1e-12)
    loop = torch.stack(
        [
            torch.linalg.solve(terms.a_KP @ terms.a_KP.T + 0.3 * torch.diag(m_K), terms.a_KP @ b_P)
            for m_K, b_P in zip(terms.mask_LK, terms.b_LP, strict=True)
        ]
    )
    torch.testing.assert_close(rows, loop, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("solver", ["cholesky", "conjugate_gradient"])
def test_solvers_keep_their_digits_at_full_size(solver: str) -> None:
    """50 x 50, five functions, weights of the paper: as badly conditioned as the problem gets in use."""
    terms = planted(MapWeights(1.0, 1e-3, 0.1), 50, 50, 5)
    c = solve_functional_map(terms, first_column_L=torch.eye(50, dtype=torch.float64)[0], solver=solver)
    right = terms.gradient(torch.nn.functional.pad(c[:, :1], (0, 49)))[:, 1:]
    assert terms.gradient(c)[:, 1:].norm() <= 1e-10 * right.norm()


def test_energy_and_gradient_equal_the_formula_and_finite_differences() -> None:
    terms, c = planted(), normal(N_Y, N_X, seed=9).requires_grad_()
    assert terms.energy(c).item() == pytest.approx(oracle.energy(c.detach().numpy(), *as_numpy(terms)), rel=1e-12)
    torch.testing.assert_close(torch.autograd.grad(terms.energy(c), c)[0], terms.gradient(c).detach())


@pytest.mark.parametrize("functions", [5, 40])
def test_energy_is_never_above_pyfm(functions: int) -> None:
    """pyfmaps 1.3.1, its energy and its L-BFGS from zeros, its default tolerances; its first column fixed as ours."""
    n = 12
    x, y = spectrum(n), spectrum(n, seed=1)
    x[0] = y[0] = 0.0
    a, b = normal(n, functions), normal(n, functions, seed=1)
    phi_x, phi_y = (torch.linalg.qr(normal(60, n, seed=seed)).Q for seed in (4, 5))
    fields = [normal(60, functions, seed=seed) for seed in (6, 7)]
    ones = torch.ones(60, dtype=torch.float64)
    s, t = multiplication_operators(phi_x, fields[0], ones), multiplication_operators(phi_y, fields[1], ones)
    terms = MapTerms(a, b, laplacian_mask(x, y, "paper"), s, t, MapWeights(1.0, 1e-3, 0.1))
    column = torch.eye(n, dtype=torch.float64)[0]
    start = np.zeros((n, n))
    start[0, 0] = 1.0
    operators = (list(s.numpy()), list(t.numpy()))
    arguments = (1.0, 1e-3, 0.1, 0.0, a.numpy(), b.numpy(), operators, ([], []), terms.mask_LK.numpy())
    found, theirs, _ = fmin_l_bfgs_b(energy_and_grad_std, start.ravel(), args=arguments)
    theirs_as_ours = terms.energy(torch.from_numpy(found.reshape(n, n))).item()
    assert theirs_as_ours == pytest.approx(theirs, rel=1e-10)  # the two energies are the same function
    ours = terms.energy(solve_functional_map(terms, first_column_L=column)).item()
    assert ours <= theirs * (1 + 1e-12)
    assert ours == pytest.approx(theirs, rel=1e-2)


def test_equal_spaces_give_the_identity_from_no_start_at_all() -> None:
    values = spectrum(8)
    a = normal(8, 20)
    terms = MapTerms(a, a, laplacian_mask(values, values), weights=MapWeights(1.0, 10.0, 0.0))
    torch.testing.assert_close(solve_functional_map(terms), torch.eye(8, dtype=torch.float64), atol=1e-10, rtol=0)


def test_resolvent_mask_equals_its_formula() -> None:
    x, y = spectrum(6), spectrum(4, seed=1)
    np.testing.assert_allclose(laplacian_mask(x, y), oracle.resolvent_mask(x.tolist(), y.tolist()), rtol=1e-12)
    torch.testing.assert_close(laplacian_mask(3 * x, 3 * y), laplacian_mask(x, y))


def test_squared_mask_has_mean_one_and_the_papers_sum_one() -> None:
    x, y = spectrum(6), spectrum(4, seed=1)
    squared, paper = laplacian_mask(x, y, "squared"), laplacian_mask(x, y, "paper")
    assert squared.mean().item() == pytest.approx(1) == pytest.approx(paper.sum().item())
    torch.testing.assert_close(squared, 24 * paper)
    assert (squared[2, 3] / squared[0, 1]).item() == pytest.approx(((x[3] - y[2]) / (x[1] - y[0])).item() ** 2)


def test_mask_is_the_transpose_with_the_spaces_exchanged() -> None:
    x, y = spectrum(6), spectrum(4, seed=1)
    for form in ("resolvent", "squared", "paper"):
        torch.testing.assert_close(laplacian_mask(x, y, form).T, laplacian_mask(y, x, form))


def test_multiplication_operators_multiply() -> None:
    """On a full orthonormal basis S_f S_g = S_fg, and S_f takes the coefficients of h to those of f h."""
    phi = torch.linalg.qr(normal(6, 6)).Q
    f, g, h = normal(6), normal(6, seed=1), normal(6, seed=2)
    s_f, s_g, s_fg = multiplication_operators(phi, torch.stack([f, g, f * g], dim=1), torch.ones(6).double())
    torch.testing.assert_close(s_f @ s_g, s_fg)
    torch.testing.assert_close(s_f @ (phi.T @ h), phi.T @ (f * h))


def test_signs_and_rotations_of_one_basis_turn_the_map_along() -> None:
    """Q within equal eigenvalues of Y: C becomes Q^T C."""
    x, y = spectrum(6), torch.tensor([0.0, 0.2, 0.2, 0.5, 0.7, 0.7], dtype=torch.float64)
    q = torch.block_diag(-torch.eye(1), *[torch.linalg.qr(normal(n, n, seed=n)).Q for n in (2, 1, 2)]).double()
    terms = planted(WEIGHTS, 6, 6)._replace(mask_LK=laplacian_mask(x, y) + 0.01)
    turned = terms._replace(b_LP=q.T @ terms.b_LP, t_JLL=q.T @ terms.t_JLL @ q)
    torch.testing.assert_close(solve_functional_map(turned), q.T @ solve_functional_map(terms), atol=1e-9, rtol=0)


def test_isometric_spaces_give_transposed_maps_both_ways() -> None:
    values, a = spectrum(6), normal(6, 30)
    q = torch.diag(torch.tensor([1.0, -1, -1, 1, -1, 1], dtype=torch.float64))
    there = solve_functional_map(MapTerms(a, q @ a, laplacian_mask(values, values)))
    back = solve_functional_map(MapTerms(q @ a, a, laplacian_mask(values, values)))
    torch.testing.assert_close(there, back.T, atol=1e-10, rtol=0)
    torch.testing.assert_close(there, q, atol=1e-10, rtol=0)


def test_float32_in_float32_out() -> None:
    terms = planted()
    single = MapTerms(*(tensor.float() for tensor in terms[:5]), terms.weights)
    c = solve_functional_map(single)
    assert c.dtype == torch.float32
    torch.testing.assert_close(c.double(), solve_functional_map(terms), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"a_KP": torch.zeros(N_X, 4).double()}, ShapeError, "same functions"),
        ({"mask_LK": torch.zeros(N_X, N_Y).double()}, ShapeError, "expected a mask"),
        ({"s_JKK": None}, InputError, "both sides or on none"),
        ({"s_JKK": torch.zeros(2, N_X, N_X).double()}, ShapeError, "one pair for every function"),
        ({"b_LP": torch.full((N_Y, N_FUNCTIONS), torch.nan).double()}, NonFiniteError, "expected finite terms"),
        ({"weights": MapWeights(-1.0)}, InputError, "at least 0"),
        ({"mask_LK": torch.full((N_Y, N_X), -1.0).double()}, InputError, "at least 0"),
        ({"weights": MapWeights(1.0, 0.0, 0.0)}, InputError, "one minimum"),
    ],
)
def test_terms_that_do_not_fit_are_refused(change: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        solve_functional_map(planted()._replace(**change))


def test_solver_names_and_columns_are_checked() -> None:
    with pytest.raises(InputError, match="expected solver"):
        solve_functional_map(planted(), solver="lbfgs")
    with pytest.raises(InputError, match="solver='cholesky'"):
        solve_functional_map(planted(), solver="rows")
    with pytest.raises(ShapeError, match="first column"):
        solve_functional_map(planted(), first_column_L=torch.zeros(N_X).double())


@pytest.mark.parametrize("values", [torch.zeros(0), torch.tensor([-1.0]), torch.tensor([torch.nan]), torch.zeros(2, 2)])
def test_masks_need_eigenvalues(values: torch.Tensor) -> None:
    with pytest.raises(InputError, match="eigenvalues of Y"):
        laplacian_mask(spectrum(3), values)
    with pytest.raises(InputError, match="expected form"):
        laplacian_mask(spectrum(3), spectrum(3), "ratio")
