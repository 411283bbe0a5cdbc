"""scikit-learn's contract, inputs and outputs, determinism, and everything that is refused."""

from collections.abc import Callable

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from sklearn.base import clone
from sklearn.datasets import make_blobs, make_moons
from sklearn.exceptions import NotFittedError
from sklearn.metrics import adjusted_rand_score
from sklearn.utils.estimator_checks import check_estimator

from neigenmaps.errors import IdentifiabilityWarning, InputError, NonFiniteError, ShapeError, UnknownNameError
from neigenmaps.graphs import NeuralEigenmap, NeuralSpectralClustering, graph_from_edges
from neigenmaps.spectral import neighbor_graph

X = np.random.default_rng(0).standard_normal((60, 4))
FEW = {"max_steps": 3, "hidden": 16, "batch_size": 32, "random_state": 0}
RING = np.stack([np.arange(60), (np.arange(60) + 1) % 60], axis=1)


@pytest.mark.filterwarnings("ignore")  # checks feed what scikit-learn warns of, such as lists of numbers as text
@pytest.mark.parametrize(
    "estimator",
    [
        NeuralEigenmap(2, max_steps=3, hidden=16),
        NeuralSpectralClustering(
            3, embedding=NeuralEigenmap(2, kernel="rbf", max_steps=5, hidden=16, batch_size=32), n_init=1
        ),
        pytest.param(NeuralSpectralClustering(3, n_init=1), marks=pytest.mark.slow),
    ],
    ids=["NeuralEigenmap", "NeuralSpectralClustering", "NeuralSpectralClustering by default"],
)
def test_scikit_learns_checks(estimator: object) -> None:
    results = check_estimator(estimator, on_fail=None)
    failed = [(result["check_name"], str(result["exception"])) for result in results if result["status"] == "failed"]
    assert failed == []
    assert sum(result["status"] == "passed" for result in results) >= 40


def test_arrays_tensors_and_sparse_rows_give_the_same_functions() -> None:
    single = X.astype(np.float32)
    array = NeuralEigenmap(3, **FEW).fit(single)
    tensor = NeuralEigenmap(3, **FEW).fit(torch.from_numpy(single))
    values = array.transform(single)
    assert isinstance(values, np.ndarray)
    assert values.dtype == np.float32
    assert array.transform(X).dtype == np.float64
    torch.testing.assert_close(tensor.transform(torch.from_numpy(single)), torch.from_numpy(values))
    assert isinstance(tensor.eigenvalues_, torch.Tensor)
    before = single.copy()
    sparse = NeuralEigenmap(3, kernel_params={"gamma": 0.2}, **FEW).fit(sp.csr_matrix(single))
    np.testing.assert_array_equal(single, before)
    np.testing.assert_allclose(sparse.transform(sp.csr_matrix(single)), sparse.transform(single), atol=1e-6)


def test_the_same_seed_gives_the_same_functions_and_leaves_the_global_one_alone() -> None:
    settings = FEW | {"random_state": 7}
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    first = NeuralEigenmap(2, drop_features=0.3, **settings).fit(X)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(2)
    np.testing.assert_array_equal(clone(first).fit(X).transform(X), first.transform(X))
    other = NeuralEigenmap(2, drop_features=0.3, **settings | {"random_state": 8}).fit(X)
    assert not np.array_equal(other.transform(X), first.transform(X))


def test_functions_are_orthonormal_and_ordered() -> None:
    found = NeuralEigenmap(5, **FEW).fit(X)
    phi = found.transform(X)
    np.testing.assert_allclose(phi.T @ phi / len(X), np.eye(5), atol=1e-8)
    assert (np.diff(found.eigenvalues_) <= 0).all()
    scaled = clone(found).set_params(scaling="sqrt_eigenvalue").fit(X).transform(X)
    np.testing.assert_allclose(scaled, phi * np.sqrt(found.eigenvalues_), rtol=1e-8)


def test_pairs_in_every_form_are_one_graph() -> None:
    matrix = sp.csr_matrix((np.ones(60), (RING[:, 0], RING[:, 1])), shape=(60, 60))
    forms = [RING, torch.from_numpy(RING), RING.tolist(), matrix, matrix + matrix.T, graph_from_edges(RING, 60)]
    found = [NeuralEigenmap(2, pairs=form, **FEW).fit(X).transform(X) for form in forms]
    for other in found[1:]:
        np.testing.assert_array_equal(other, found[0])


def test_the_neighbour_graph_by_name_and_as_an_object() -> None:
    graph = neighbor_graph(X, 5, metric="euclidean")
    given = NeuralEigenmap(2, kernel=graph, **FEW).fit(X)
    named = NeuralEigenmap(2, kernel="neighbors", kernel_params={"n_neighbors": 5, "metric": "euclidean"}, **FEW).fit(X)
    np.testing.assert_array_equal(given.transform(X), named.transform(X))


def test_a_matrix_is_read_row_by_row() -> None:
    class Recorded(np.ndarray):
        asked = 0

        def __getitem__(self, key: object) -> object:
            Recorded.asked = max(Recorded.asked, np.size(key) if isinstance(key, np.ndarray) else 0)
            return super().__getitem__(key)

    matrix = np.exp(-((X[:, None] - X) ** 2).sum(-1) / 4)
    recorded = matrix.view(Recorded)
    found = NeuralEigenmap(2, kernel=recorded, most_rows=20, **FEW | {"batch_size": 10}).fit(X)
    assert 10 <= Recorded.asked <= 60
    dense = NeuralEigenmap(2, kernel=matrix, most_rows=20, **FEW | {"batch_size": 10}).fit(X)
    sparse = NeuralEigenmap(2, kernel=sp.csr_matrix(matrix), most_rows=20, **FEW | {"batch_size": 10}).fit(X)
    tensor = NeuralEigenmap(2, kernel=torch.from_numpy(matrix), most_rows=20, **FEW | {"batch_size": 10}).fit(X)
    for other in (dense, sparse, tensor):
        np.testing.assert_allclose(other.transform(X), found.transform(X), atol=1e-6)


def test_a_sample_of_rows_stands_for_all() -> None:
    """Eigenvalues of 400 of 1,200 rows, for a kernel that says little about each: the same to sampling error."""
    rows = np.random.default_rng(1).standard_normal((1200, 2))
    whole, part = (
        NeuralEigenmap(3, kernel_params={"gamma": 0.2}, most_rows=most, **FEW | {"hidden": 64}).fit(rows)
        for most in (1200, 400)
    )
    np.testing.assert_allclose(part.eigenvalues_, whole.eigenvalues_, rtol=0.15)
    assert not np.allclose(part.eigenvalues_, whole.eigenvalues_, rtol=1e-6)


def test_two_moons_and_points_not_seen() -> None:
    points, moon = make_moons(600, noise=0.05, random_state=0)
    graph = {"n_neighbors": 10, "metric": "euclidean"}
    embedding = NeuralEigenmap(
        1, kernel="neighbors", kernel_params=graph, hidden=128, batch_size=256, max_steps=400, lr=1e-2
    )
    clusters = NeuralSpectralClustering(2, embedding=embedding, random_state=0).fit(points[:400])
    assert adjusted_rand_score(moon[:400], clusters.labels_) == 1
    assert adjusted_rand_score(moon[400:], clusters.predict(points[400:])) >= 0.98
    np.testing.assert_array_equal(clusters.predict(points[:400]), clusters.labels_)


def test_two_moons_with_the_default_settings() -> None:
    points, moon = make_moons(600, noise=0.05, random_state=1)
    clusters = NeuralSpectralClustering(2, random_state=0).fit(points[:400])
    assert adjusted_rand_score(moon[:400], clusters.labels_) == 1
    assert adjusted_rand_score(moon[400:], clusters.predict(points[400:])) == 1


def test_the_default_is_the_euclidean_neighbour_graph_less_its_constant() -> None:
    chosen = NeuralSpectralClustering(3)._embedding(12).get_params()
    assert (chosen["n_components"], chosen["kernel"]) == (2, "neighbors")
    assert chosen["kernel_params"] == {"n_neighbors": 10, "metric": "euclidean", "kernel": "symmetric_gaussian"}


def test_blobs_by_a_given_embedding() -> None:
    points, blob = make_blobs(200, centers=4, cluster_std=0.4, random_state=3)
    embedding = NeuralEigenmap(4, kernel="rbf", max_steps=50, hidden=64)
    clusters = NeuralSpectralClustering(4, embedding=embedding, random_state=0).fit(points)
    assert adjusted_rand_score(blob, clusters.labels_) == 1
    assert not hasattr(embedding, "eigenvalues_")
    assert clusters.embedding_.get_params()["kernel"] == "rbf"


def test_more_functions_than_rows_are_said() -> None:
    with pytest.warns(IdentifiabilityWarning, match="10 independent functions, 20"):
        found = NeuralEigenmap(20, **FEW | {"hidden": 32}).fit(X[:10])
    assert found.transform(X).shape == (60, 10)


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"kernel": "rbf", "pairs": RING}, InputError, "got both"),
        ({"kernel": "rfb"}, UnknownNameError, "did you mean 'rbf'"),
        ({"span": "all"}, InputError, "span"),
        ({"solver": "exact"}, InputError, "solver 'objective' or"),
        ({"solver": "eigenvectors"}, InputError, "expected a graph for solver"),
        ({"scaling": "none"}, InputError, "scaling"),
        ({"n_components": 0}, InputError, "n_components as a whole number of at least 1, got 0"),
        ({"batch_size": 1}, InputError, "batch_size as a whole number of at least 2"),
        ({"shift": -1.0}, InputError, "shift"),
        ({"hidden": 0}, InputError, "hidden"),
        ({"drop_features": 1.0}, InputError, "drop_features"),
        ({"pairs": RING, "walk_steps": 0}, InputError, "walk_steps as a whole number of at least 1"),
        ({"batch_norm": 1}, InputError, "batch_norm True or False"),
        ({"kernel_params": 3}, InputError, "names and values"),
        ({"kernel_params": {"gama": 1.0}}, UnknownNameError, "did you mean 'gamma'"),
        ({"kernel_params": {"gamma": None}}, InputError, "gamma as a number"),
        ({"device": "cpuu"}, InputError, "a device such as 'cpu'"),
        ({"device": 3.5}, InputError, "a device such as 'cpu'"),
        ({"pairs": [[0, 60]]}, InputError, r"numbers from 0 to 59, got edge \(0, 60\)"),
        ({"pairs": [[0.0, 1.0]]}, ShapeError, "integers"),
        ({"pairs": sp.eye(50, k=1)}, ShapeError, "60 rows and 50 nodes"),
        ({"pairs": 3}, InputError, "expected a Graph"),
        ({"kernel": np.eye(50)}, ShapeError, "square matrix"),
        ({"kernel": 3.0}, ShapeError, "got float"),
        ({"kernel": lambda a, b: a @ b.T * float("nan")}, NonFiniteError, "NaN"),
        ({"kernel": lambda a, b: a @ b.T + a[:, :1]}, InputError, "symmetric"),
        ({"kernel": lambda a, b: (a @ b.T)[:, :1]}, ShapeError, "returns"),
        ({"kernel": lambda a, b: np.float64(1)}, ShapeError, r"got \(\)"),
        ({"kernel": lambda a, b: None}, InputError, "real numbers .*, got NoneType"),
        ({"kernel": lambda a, b: "near"}, InputError, "real numbers .*, got str"),
        ({"kernel": lambda a, b: [[1, 2], [3]]}, InputError, "real numbers .*, got list"),
        ({"kernel": lambda a, b: (a @ b.T).to(torch.complex64)}, InputError, "real numbers .*complex64"),
        ({"kernel": lambda a, b: (a @ b.T).to_sparse()}, InputError, "a dense tensor"),
        ({"kernel": lambda a, b: np.full((len(a), len(b)), None)}, InputError, "real numbers .*object"),
        ({"kernel": X @ X.T + np.triu(np.ones((60, 60)))}, InputError, "symmetric"),
        ({"kernel": np.where(np.eye(60) > 0, np.inf, X @ X.T)}, NonFiniteError, "infinity"),
        ({"kernel": lambda a, b: 0 * (a @ b.T)}, InputError, "0 between all points"),
        ({"lr": 1e30}, NonFiniteError, "lower lr"),
    ],
)
def test_refusals(settings: dict, error: type, words: str) -> None:
    with pytest.raises(error, match=words):
        NeuralEigenmap(**FEW | {"max_steps": 50} | settings).fit(X)


NUMBERS = ("n_components", "max_steps", "batch_size", "most_rows", "hidden", "depth", "walk_steps")
REALS = ("shift", "lr", "weight_decay", "drop_features", "ridge")


@pytest.mark.parametrize("name", NUMBERS + REALS)
@pytest.mark.parametrize("value", [None, "3", True, float("nan"), -1, [2]])
def test_numbers_are_asked_for_by_name(name: str, value: object) -> None:
    with pytest.raises(InputError, match=f"expected {name} as a"):
        NeuralEigenmap(**{name: value}).fit(X)
    if name in NUMBERS:
        with pytest.raises(InputError, match=f"expected {name} as a whole number"):
            NeuralEigenmap(**{name: 2.5}).fit(X)


def test_numpys_numbers_will_do() -> None:
    plain = NeuralEigenmap(2, **FEW).fit_transform(X)
    few = {name: value if name == "random_state" else np.int64(value) for name, value in FEW.items()}
    np.testing.assert_array_equal(NeuralEigenmap(np.int32(2), lr=np.float32(5e-3), **few).fit(X).n_components, 2)
    np.testing.assert_array_equal(NeuralEigenmap(np.int32(2), **few).fit_transform(X), plain)


@pytest.mark.parametrize("kind", [np.asarray, lambda k: k.half(), lambda k: k.double().requires_grad_()])
def test_a_kernel_may_return_any_real_numbers(kind: Callable) -> None:
    """Arrays, half precision, and parameters of the reader's own, which are not learned here."""
    grid = np.round(2 * X) / 2
    wanted = NeuralEigenmap(2, kernel=lambda a, b: a @ b.T, **FEW).fit(grid).eigenvalues_
    found = NeuralEigenmap(2, kernel=lambda a, b: kind(a @ b.T), **FEW).fit(grid).eigenvalues_
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
    whole = NeuralEigenmap(2, kernel=lambda a, b: (4 * a @ b.T).round().long(), **FEW).fit(grid).eigenvalues_
    np.testing.assert_allclose(whole, 4 * wanted, rtol=1e-5)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"n_clusters": None}, "n_clusters as a whole number of at least 1, got None"),
        ({"n_clusters": "3"}, "n_clusters as a whole number"),
        ({"n_clusters": 2.5}, "n_clusters as a whole number"),
        ({"n_clusters": 61}, "1 <= n_clusters <= 60"),
        ({"n_neighbors": None}, "n_neighbors as a whole number"),
        ({"n_init": None}, "n_init as a whole number"),
        ({"n_init": 0}, "n_init as a whole number"),
        ({"embedding": 3}, r"embedding NeuralEigenmap\(...\), got 3"),
        ({"embedding": NeuralEigenmap}, "embedding NeuralEigenmap"),
    ],
)
def test_refused_clusterings(settings: dict, words: str) -> None:
    with pytest.raises(InputError, match=words):
        NeuralSpectralClustering(**settings).fit(X)


def test_one_missing_value_anywhere_in_a_matrix_is_found() -> None:
    """Beyond the 256 rows that are looked at before work starts, and without any training."""
    rows = np.random.default_rng(0).standard_normal((400, 3))
    matrix = np.exp(-((rows[:, None] - rows) ** 2).sum(-1))
    matrix[1, 3] = matrix[3, 1] = np.nan
    with pytest.raises(NonFiniteError, match="NaN"):
        NeuralEigenmap(2, kernel=matrix, **FEW | {"max_steps": 0}).fit(rows)


def test_refused_rows() -> None:
    found = NeuralEigenmap(2, **FEW)
    with pytest.raises(NotFittedError):
        found.transform(X)
    with pytest.raises(ShapeError, match="shape"):
        found.fit(torch.zeros(3))
    with pytest.raises(NonFiniteError, match="row 1"):
        found.fit(torch.tensor([[0.0, 1], [float("nan"), 0], [1, 1]]))
    found.fit(torch.from_numpy(X))
    with pytest.raises(ShapeError, match="5 features, but 4"):
        found.transform(torch.zeros(2, 5))
