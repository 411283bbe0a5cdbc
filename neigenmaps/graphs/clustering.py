"""Spectral clustering whose spectral step is a network: clusters of points it has not seen cost one forward pass."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import scipy.sparse as sp  # type: ignore[import-untyped]
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClusterMixin, clone
from sklearn.cluster import KMeans
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from neigenmaps.errors import InputError
from neigenmaps.graphs.eigenmap import NeuralEigenmap
from neigenmaps.graphs.settings import check_whole

FEWEST_STEPS, MOST_STEPS = 150, 1000  # of the network; more changes the third digit of ARI on digits, mfeat and MNIST


class NeuralSpectralClustering(ClusterMixin, BaseEstimator):
    """k-means on the n_clusters - 1 smoothest functions of a neighbour graph, the constant left out.

    embedding: an unfitted `NeuralEigenmap` that says what to cluster by; when None, one on the Euclidean graph of
        `n_neighbors` neighbours (fewer where there are fewer rows), its pieces bridged, with self-tuning weights (Zelnik-Manor
        and Perona, 2004); fitted to the graph's eigenvectors, so that 70,000 images of 784 pixels take half a minute.
    n_init: starts of k-means. random_state: of both steps; an embedding with a random_state of its own keeps it.

    Labels are NumPy arrays. Fitted: labels_, embedding_, k_means_, n_features_in_. Raises as `NeuralEigenmap` does, and
    InputError for more clusters than rows, and an embedding of another kind.
    """

    def __init__(
        self,
        n_clusters: int = 8,
        *,
        n_neighbors: int = 10,
        embedding: NeuralEigenmap | None = None,
        n_init: int = 10,
        random_state: Any = None,
    ) -> None:
        self.n_clusters = n_clusters
        self.n_neighbors = n_neighbors
        self.embedding = embedding
        self.n_init = n_init
        self.random_state = random_state

    def fit(self, X: Any, y: None = None) -> Self:
        """Cluster the rows of X, (N, F)."""
        self._check_settings()
        rows = self._rows(X, reset=True)
        if not 1 <= self.n_clusters <= rows.shape[0]:
            raise InputError(f"expected 1 <= n_clusters <= {rows.shape[0]} (the rows of X), got {self.n_clusters}")
        random = check_random_state(self.random_state)
        self.embedding_ = self._embedding(rows.shape[0])
        seed = int(random.randint(2**31 - 1))
        if self.embedding_.random_state is None:
            self.embedding_.set_params(random_state=seed)
        codes_NK = np.asarray(self.embedding_.fit(X if isinstance(X, Tensor) else rows).transform(rows))
        self.k_means_ = KMeans(self.n_clusters, n_init=self.n_init, random_state=seed).fit(codes_NK)
        self.labels_ = self.k_means_.labels_
        return self

    def predict(self, X: Any) -> NDArray[np.int32]:
        """The cluster whose centre is nearest, (Q, F) -> (Q,)."""
        check_is_fitted(self)
        labels: NDArray[np.int32] = self.k_means_.predict(
            np.asarray(
                self.embedding_.transform(self._rows(X, reset=False)), dtype=self.k_means_.cluster_centers_.dtype
            )
        )
        return labels

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags

    def _check_settings(self) -> None:
        check_whole(1, n_clusters=self.n_clusters, n_neighbors=self.n_neighbors)
        if self.n_init != "auto":
            check_whole(1, n_init=self.n_init)
        if self.embedding is not None and not isinstance(self.embedding, NeuralEigenmap):
            raise InputError(f"expected an embedding NeuralEigenmap(...), got {self.embedding!r}")

    def _embedding(self, n_rows: int) -> NeuralEigenmap:
        if self.embedding is not None:
            return clone(self.embedding)
        graph = {
            "n_neighbors": min(self.n_neighbors, n_rows - 1),
            "metric": "euclidean",
            "kernel": "symmetric_gaussian",
        }
        return NeuralEigenmap(
            max(1, self.n_clusters - 1),
            kernel="neighbors",
            kernel_params=graph,
            solver="eigenvectors",
            span="outputs",  # the hidden layer follows the graph of so few rows more closely, unseen rows less
            batch_size=256,
            max_steps=min(max(n_rows // 50, FEWEST_STEPS), MOST_STEPS),
            lr=1e-2,
        )

    def _rows(self, X: Any, *, reset: bool) -> NDArray[Any] | sp.csr_matrix:
        X = X.detach().cpu().numpy() if isinstance(X, Tensor) else X
        return validate_data(
            self, X, reset=reset, accept_sparse="csr", dtype=[np.float64, np.float32], ensure_min_samples=1 + reset
        )
