"""Eigenfunctions of any kernel, or of the walk on a graph, as a network that also reads points it has not seen.

What is unusual: the network is trained to *span* the leading eigenfunctions, and its last layer is then solved instead of
trained, by Rayleigh-Ritz over its last hidden layer with the exact moments of the operator. On smooth kernels this
turns a cosine of 0.8 into one of 1 - 1e-6.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from inspect import signature
from typing import Any, Literal, Self

import numpy as np
import scipy.sparse as sp  # type: ignore[import-untyped]
import torch
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from neigenmaps.errors import IdentifiabilityWarning, InputError, NonFiniteError, ShapeError, UnknownNameError
from neigenmaps.functional.kernels import arc_cosine_kernel, polynomial_kernel, rbf_kernel
from neigenmaps.functional.rayleigh_ritz import RitzResult, ritz_from_moments
from neigenmaps.graphs.graph import Graph, as_graph, checked_features, graph_from_edges
from neigenmaps.graphs.network import ResidualMLP
from neigenmaps.graphs.node_kernel import NodeKernel, NodeOperator
from neigenmaps.graphs.operators import (
    Block,
    KernelOperator,
    Operator,
    Rows,
    SolvedWalkOperator,
    WalkOperator,
    in_chunks,
    take,
)
from neigenmaps.graphs.settings import check_real, check_whole
from neigenmaps.spectral import NeighborGraph, neighbor_graph
from neigenmaps.types import Scaling

KERNELS: dict[str, Callable[..., Tensor]] = {
    "rbf": rbf_kernel,
    "polynomial": polynomial_kernel,
    "arc_cosine": arc_cosine_kernel,
}
POSITIVE = 1e-6  # of the kernel's mean diagonal: a largest eigenvalue below this is rounding
INDEFINITE = 1e-3  # of the largest eigenvalue: more negative than this is no rounding


class NeuralEigenmap(TransformerMixin, BaseEstimator):
    """Ordered eigenfunctions phi_j(x), eigenvalues_ falling, of one of two operators:

        kernel   (T f)(x) = mean_n k(x, x_n) f(x_n)        no constant is taken off
        pairs    (T f)(i) = E[f(j)], j a neighbour of i    constant dropped; eigenvalues_ = 1 - those of the Laplacian

    kernel: "rbf" (when neither is given), "polynomial", "arc_cosine", "neighbors" (the walk on the neighbour graph of X);
        a function of two tensors (N, F), (M, F) -> (N, M); a matrix (N, N) over the rows of X, of which only asked rows
        and columns are read (array, memory map, SciPy sparse); a `NeighborGraph` over the rows of X; a `NodeKernel`, for
        nodes with features: the constant is taken off there.
    kernel_params: arguments of `neigenmaps.functional.kernels`, or of `neighbor_graph`. gamma of "rbf" is 1 / (F var X)
        unless given.
    pairs: a graph over the rows of X: edges (E, 2), or what `as_graph` takes. walk_steps: how far apart a pair is;
        eigenvalues_ are those of that walk. An even number makes all of them positive.
    shift: learns T + shift I, for kernels with eigenvalues below zero among those wanted: at least the size of the most
        negative one. eigenvalues_ are those of T.
    solver: "objective" trains on the kernel or on pairs, and needs no more memory than a batch; "eigenvectors", for graphs,
        first solves the whole graph's smoothest functions and fits the network to them: ten times as fast, or more. Functions
        near -1, which an even walk brings to the front, are not among them.
    span: "hidden" solves the last layer over all hidden units; "outputs" only orders the n_components outputs that were
        trained, which is less exact on the rows given and follows them less where there are few.
    scaling: "unit" variance; "sqrt_eigenvalue", with which inner products are the kernel; "eigenvalue", with which they are
        the kernel applied twice: better where labels are few. most_rows: of the square of kernel values summed at the end.
    ridge: as in `ritz_from_moments`.
    hidden, depth, batch_norm, drop_features: of the network. device: X's when None.

    NumPy in, NumPy out; a tensor in, a tensor out, in its precision and on its device. X may be CSR.
    Fitted: eigenvalues_, network_, ritz_ (functions = ritz_ of the span), n_features_in_.

    Raises InputError for a kernel that is not symmetric, for two operators at once and for unknown names; NonFiniteError
    for kernel values or rows with NaN or infinity; ShapeError where rows and nodes do not match. Sources: arXiv 2210.12637,
    2402.03655.
    """

    n_features_in_: int

    def __init__(
        self,
        n_components: int = 8,
        *,
        kernel: Any = None,
        pairs: Any = None,
        kernel_params: Mapping[str, Any] | None = None,
        walk_steps: int = 1,
        shift: float = 0.0,
        solver: Literal["objective", "eigenvectors"] = "objective",
        span: Literal["hidden", "outputs"] = "hidden",
        scaling: Scaling | Literal["eigenvalue"] = "unit",
        hidden: int = 256,
        depth: int = 2,
        batch_norm: bool = False,
        drop_features: float = 0.0,
        batch_size: int = 512,
        max_steps: int = 500,
        lr: float = 5e-3,
        weight_decay: float = 0.0,
        most_rows: int = 8192,
        ridge: float = 0.0,
        device: str | torch.device | None = None,
        random_state: Any = None,
    ) -> None:
        self.n_components = n_components
        self.kernel = kernel
        self.pairs = pairs
        self.kernel_params = kernel_params
        self.walk_steps = walk_steps
        self.shift = shift
        self.solver = solver
        self.span = span
        self.scaling = scaling
        self.hidden = hidden
        self.depth = depth
        self.batch_norm = batch_norm
        self.drop_features = drop_features
        self.batch_size = batch_size
        self.max_steps = max_steps
        self.lr = lr
        self.weight_decay = weight_decay
        self.most_rows = most_rows
        self.ridge = ridge
        self.device = device
        self.random_state = random_state

    def fit(self, X: Any, y: None = None) -> Self:
        """Learn the functions over the rows X, (N, F)."""
        self._check_settings()
        rows = self._rows(X, reset=True)
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        generator = torch.Generator().manual_seed(seed)
        operator = self._operator(rows)
        with torch.random.fork_rng(
            devices=[rows.device] if _on_cuda(rows) else []
        ):  # layers and dropout take no generator
            torch.manual_seed(seed)
            self.network_ = self._network(operator).to(operator.device)
            self._train(operator, generator)
        self.network_.eval()
        if self.span == "hidden":
            self.network_.double()  # small directions of the span are told apart by differences of large numbers
        self.network_.requires_grad_(False)
        moments, sign_rows = operator.moments(self._functions, generator)
        solved = ritz_from_moments(
            moments, sign_rows=sign_rows, drop_constant=operator.constant_is_eigenfunction, ridge=self.ridge
        )
        kept = min(self.n_components, solved.rank)
        self.ritz_ = RitzResult(solved.eigenvalues[:kept], solved.rotation[:, :kept], solved.mean, kept)
        self._report(operator)
        values = self.ritz_.eigenvalues
        self.eigenvalues_ = values.to(X) if isinstance(X, Tensor) else values.cpu().numpy()
        self._n_features_out = kept
        return self

    def transform(self, X: Any) -> Any:
        """Values of the eigenfunctions at any rows, (Q, F) -> (Q, n_components), largest eigenvalue first."""
        check_is_fitted(self)
        rows = self._rows(X, reset=False)
        device = next(self.network_.parameters()).device
        phi_QK = in_chunks(lambda rows_BF: self.ritz_(self._functions(rows_BF.to(device))), rows, device)
        if self.scaling != "unit":
            power = 0.5 if self.scaling == "sqrt_eigenvalue" else 1.0
            phi_QK = phi_QK * self.ritz_.eigenvalues.clamp_min(0) ** power
        if isinstance(X, Tensor):
            return phi_QK.to(X if X.is_floating_point() else rows)
        return phi_QK.cpu().numpy().astype(np.float32 if getattr(X, "dtype", None) == np.float32 else np.float64)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        tags.non_deterministic = False
        return tags

    def _functions(self, rows_BF: Tensor) -> Tensor:
        outputs = self.network_(rows_BF)
        return outputs.hidden if self.span == "hidden" else outputs.codes

    def _train(self, operator: Operator, generator: torch.Generator) -> None:
        network = self.network_.train()
        optimiser = torch.optim.AdamW(network.parameters(), lr=self.lr, weight_decay=self.weight_decay)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimiser, self.lr, total_steps=max(int(self.max_steps), 1), pct_start=0.1
        )
        for step in range(self.max_steps):
            loss = operator.loss(lambda rows_BF: network(rows_BF).codes, self.batch_size, generator)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            if step % 50 == 49 and not torch.isfinite(loss):
                raise NonFiniteError(f"the loss is {loss.item()} at step {step + 1}: lower lr, or scale X")

    def _network(self, operator: Operator) -> ResidualMLP:
        rows = operator.rows
        network = ResidualMLP(
            rows.shape[1],
            self.n_components,
            hidden=self.hidden,
            depth=self.depth,
            drop_features=self.drop_features,
            batch_norm=self.batch_norm,
        )
        if isinstance(rows, Tensor):
            center_F = rows.mean(dim=0, dtype=torch.float64)
            square = (rows - center_F.to(rows)).square().mean(dtype=torch.float64)
        else:
            center_F = torch.zeros(rows.shape[1])
            square = torch.tensor(
                float(np.square(rows.data, dtype=np.float64).sum() / np.prod(rows.shape, dtype=float))
            )
        network.set_units(center_F, square.sqrt() if square > 0 else torch.ones(()))
        return network

    def _operator(self, rows: Rows) -> Operator:
        device = rows.device if isinstance(rows, Tensor) else torch.device(self.device or "cpu")
        parameters = dict(self.kernel_params or {})
        kernel = "rbf" if self.kernel is None and self.pairs is None else self.kernel
        if kernel == "neighbors" if isinstance(kernel, str) else isinstance(kernel, NeighborGraph):
            graph = kernel if isinstance(kernel, NeighborGraph) else neighbor_graph(_dense(rows), **parameters)
            return self._walk(rows, graph.adjacency, device)
        if self.pairs is not None:
            return self._walk(rows, self._graph(rows.shape[0]).adjacency, device)
        if self.solver == "eigenvectors":
            raise InputError(
                "expected a graph for solver='eigenvectors', got a kernel: kernel='neighbors' joins near rows, pairs=... takes "
                "edges; other kernels are learned by solver='objective'"
            )
        if isinstance(kernel, NodeKernel):
            return NodeOperator(rows, kernel, shift=self.shift, device=device)
        block = self._block(kernel, rows, parameters)
        return KernelOperator(rows, block, shift=self.shift, most_rows=self.most_rows, device=device)

    def _walk(self, rows: Rows, adjacency: sp.csr_matrix, device: torch.device) -> WalkOperator:
        settings: dict[str, Any] = {"steps": self.walk_steps, "shift": self.shift, "device": device}
        if self.solver == "objective":
            return WalkOperator(rows, adjacency, **settings)
        return SolvedWalkOperator(rows, adjacency, n_functions=self.n_components, **settings)

    def _graph(self, n_rows: int) -> Graph:
        edges = self.pairs
        if isinstance(edges, Tensor | np.ndarray | list):
            return graph_from_edges(np.asarray(edges), n_rows)
        return as_graph(edges)

    def _block(self, kernel: Any, rows: Rows, parameters: dict[str, Any]) -> Block:
        if isinstance(kernel, str):
            if kernel not in KERNELS:
                raise UnknownNameError("kernel", kernel, [*KERNELS, "neighbors"])
            function = KERNELS[kernel]
            _check_parameters(f"kernel {kernel!r}", function, parameters)
            if kernel == "rbf" and "gamma" not in parameters:
                parameters["gamma"] = 1 / (rows.shape[1] * _variance(rows))
            return lambda i, j: function(take(rows, i), take(rows, j), **parameters)
        if callable(kernel):
            return lambda i, j: kernel(take(rows, i), take(rows, j), **parameters)
        if getattr(kernel, "shape", None) == (rows.shape[0], rows.shape[0]):
            return lambda i, j: _entries(kernel, i, j)
        raise ShapeError(
            f"expected a kernel over the {rows.shape[0]} rows of X: a name, a function of two sets of rows, a square "
            f"matrix or a NeighborGraph, got {type(kernel).__name__} {getattr(kernel, 'shape', '')}"
        )

    def _rows(self, X: Any, *, reset: bool) -> Rows:
        """X checked: a tensor on the device, float64 if X is, or CSR in float32."""
        if isinstance(X, Tensor):
            if X.ndim != 2 or X.shape[0] == 0:
                raise ShapeError(f"expected X of shape (N, F), got {tuple(X.shape)}")
            checked_features(X, len(X))
            if not reset and X.shape[1] != self.n_features_in_:
                raise ShapeError(f"X has {X.shape[1]} features, but {self.n_features_in_} were expected as in fit")
            if reset:
                self.n_features_in_ = X.shape[1]
            X = X.detach()
            return X.to(self.device or X.device, X.dtype if X.is_floating_point() else torch.float32)
        X = validate_data(
            self,
            X,
            reset=reset,
            accept_sparse="csr",
            dtype=[np.float64, np.float32],
            ensure_min_samples=2 if reset else 1,
        )
        if sp.issparse(X):
            return sp.csr_matrix(X, dtype=np.float32)
        return torch.tensor(X, device=self.device or "cpu")

    def _check_settings(self) -> None:
        if self.kernel is not None and self.pairs is not None:
            raise InputError(
                "expected kernel or pairs, got both: a graph is a kernel of its own; leave one of them out"
            )
        if self.solver not in ("objective", "eigenvectors"):
            raise InputError(f"expected solver 'objective' or 'eigenvectors', got {self.solver!r}")
        if self.span not in ("hidden", "outputs"):
            raise InputError(f"expected span 'hidden' or 'outputs', got {self.span!r}")
        if self.scaling not in ("unit", "sqrt_eigenvalue", "eigenvalue"):
            raise InputError(f"expected scaling 'unit', 'sqrt_eigenvalue' or 'eigenvalue', got {self.scaling!r}")
        check_whole(1, n_components=self.n_components, walk_steps=self.walk_steps, hidden=self.hidden)
        check_whole(2, batch_size=self.batch_size, most_rows=self.most_rows)
        check_whole(0, max_steps=self.max_steps, depth=self.depth)
        check_real(0, shift=self.shift, lr=self.lr, weight_decay=self.weight_decay)
        check_real(0, 1, drop_features=self.drop_features, ridge=self.ridge)
        if not isinstance(self.batch_norm, bool):
            raise InputError(f"expected batch_norm True or False, got {self.batch_norm!r}")
        if self.kernel_params is not None and not isinstance(self.kernel_params, Mapping):
            raise InputError(f"expected kernel_params as names and values, got {self.kernel_params!r}")
        try:
            torch.device(self.device or "cpu")
        except (RuntimeError, TypeError) as error:
            raise InputError(f"expected a device such as 'cpu' or 'cuda:0', got {self.device!r}") from error

    def _report(self, operator: Operator) -> None:
        values = self.ritz_.eigenvalues
        if len(values) < self.n_components:
            warnings.warn(
                f"the network's span over these rows has {len(values)} independent functions, {self.n_components} were "
                "asked for: give more rows, or lower n_components",
                IdentifiabilityWarning,
                stacklevel=3,
            )
        if isinstance(operator, KernelOperator) and values[0] + self.shift <= POSITIVE * operator.scale:
            warnings.warn(
                f"the kernel has no positive eigenvalues, the largest found is {float(values[0]):.3g}: nothing was learned; "
                "look at its sign, or set shift",
                IdentifiabilityWarning,
                stacklevel=3,
            )
        elif values[-1] + self.shift < -INDEFINITE * values.abs().max():
            positive = int((values + self.shift > 0).sum())
            warnings.warn(
                f"the kernel has eigenvalues down to {float(values[-1]):.3g}: only the first {positive} functions were "
                f"learned; set shift to {-float(values[-1]):.2g} or more for the others",
                IdentifiabilityWarning,
                stacklevel=3,
            )


def _check_parameters(what: str, function: Callable[..., Any], parameters: Mapping[str, Any]) -> None:
    known = [name for name, one in signature(function).parameters.items() if one.kind is one.KEYWORD_ONLY]
    for name, value in parameters.items():
        if name not in known:
            raise UnknownNameError(f"argument of {what}", name, known)
        check_real(0, **{name: value})


def _entries(matrix: Any, i: Tensor, j: Tensor) -> Any:
    rows, columns = i.cpu().numpy(), j.cpu().numpy()
    if isinstance(matrix, Tensor):
        return matrix[i.to(matrix.device)][:, j.to(matrix.device)]
    if sp.issparse(matrix):
        return matrix.tocsr()[rows][:, columns].toarray()
    return np.array(matrix[rows])[:, columns]


def _dense(rows: Rows) -> Tensor:
    return rows if isinstance(rows, Tensor) else torch.from_numpy(rows.toarray())


def _on_cuda(rows: Rows) -> bool:
    return isinstance(rows, Tensor) and rows.is_cuda


def _variance(rows: Rows) -> float:
    if isinstance(rows, Tensor):
        return float(rows.double().var(correction=0)) or 1.0
    mean = rows.data.sum(dtype=np.float64) / np.prod(rows.shape, dtype=float)
    return float(np.square(rows.data, dtype=np.float64).sum() / np.prod(rows.shape, dtype=float) - mean**2) or 1.0
