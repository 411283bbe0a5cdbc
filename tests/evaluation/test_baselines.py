"""Principal components against scikit-learn, up to the sign that is free."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from neigenmaps.errors import InputError, NonFiniteError, ShapeError
from neigenmaps.evaluation.baselines import flatten_images, principal_components


@pytest.mark.parametrize("shape", [(50, 7), (9, 20)], ids=["tall", "wide"])
def test_agrees_with_scikit_learn(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    fit, other = (torch.randn(shape, generator=generator, dtype=torch.float64) + 3 for _ in range(2))
    got = principal_components(fit, other, n_components=5)
    reference = PCA(5, svd_solver="full").fit(fit.numpy())
    for mine, rows in zip(got, (fit, other), strict=True):
        theirs = reference.transform(rows.numpy())
        signs = np.sign((mine.numpy() * theirs).sum(axis=0))
        np.testing.assert_allclose(mine.numpy(), theirs * signs, rtol=1e-8, atol=1e-10)


def test_sign_does_not_depend_on_row_order_and_dtype_follows() -> None:
    rows = torch.randn(40, 6, generator=torch.Generator().manual_seed(1))
    (expected,) = principal_components(rows, n_components=6)
    (shuffled,) = principal_components(rows.flip(0), n_components=6)
    torch.testing.assert_close(shuffled.flip(0), expected)
    assert expected.dtype == torch.float32
    assert principal_components((rows * 10).to(torch.uint8), n_components=2)[0].dtype == torch.float32


def test_flatten_images() -> None:
    images = torch.arange(2 * 3 * 4 * 4).to(torch.uint8).reshape(2, 3, 4, 4)
    flat = flatten_images(images)
    assert flat.shape == (2, 48)
    assert flat.dtype == torch.float32
    assert flat[1, 0] == pytest.approx(48 / 255)
    assert torch.equal(flatten_images(images.double()), images.double().reshape(2, 48))


def test_wrong_input_is_refused() -> None:
    rows = torch.randn(10, 6, generator=torch.Generator().manual_seed(2))
    for n_components in (0, 7):
        with pytest.raises(InputError, match="<= 6"):
            principal_components(rows, n_components=n_components)
    with pytest.raises(ShapeError, match="one width"):
        principal_components(rows, rows[:, :5], n_components=2)
    with pytest.raises(ShapeError, match="one width"):
        principal_components(rows[None], n_components=2)
    with pytest.raises(NonFiniteError):
        principal_components(rows / 0, n_components=2)
    with pytest.raises(ShapeError, match="axis for the rows"):
        flatten_images(torch.ones(3))
