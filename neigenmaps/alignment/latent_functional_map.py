"""LatentFunctionalMap: find which rows of two spaces belong together, and carry points and functions across.

    1. Every space gets a neighbour graph and the smoothest functions on it. What is known of both (anchors, labels, else
       signatures of the graphs) gives functions that should correspond, hence a functional map C (exact minimum, see
       `neigenmaps.functional.functional_map`), refined by ZoomOut or ICP from several sizes: the first guesses.
    2. If these fail, soft assignments that harden slowly, from what is known and from noise, in the rows' own coordinates
       and in those of the eigenfunctions (`neigenmaps.functional.soft_matching`).
    3. Every guess is refined by rounds of orthogonal map and mutual best matches; the best is kept by `confidence_`.

Latent Functional Maps: arXiv 2406.14183; its steps are the first part. The rest is what makes few anchors do.

Letters: N rows and F columns of X, M rows and G columns of Y, K functions on X, L on Y, P anchors or pairs, C classes.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, Self, get_args

import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from neigenmaps.alignment.correspondence import Correspondences, correspondences_of
from neigenmaps.alignment.known_rows import (
    anchor_pairs,
    checked_rows,
    class_numbers,
    common_classes,
    labelled_rows,
)
from neigenmaps.alignment.match_search import DENSE_UP_TO, ENOUGH, Match, Start, View, best_match, sampled_rows
from neigenmaps.errors import AlignmentWarning, InputError, NotFittedError, ShapeError
from neigenmaps.functional.functional_map import (
    MapTerms,
    MapWeights,
    MaskForm,
    laplacian_mask,
    multiplication_operators,
    solve_functional_map,
)
from neigenmaps.functional.linear_maps import AffineMap, orthogonal_map, ridge_map
from neigenmaps.functional.map_refinement import icp, map_from_rows, rows_from_map, zoomout, zoomout_sizes
from neigenmaps.functional.soft_matching import Pairs, cosines
from neigenmaps.spectral import (
    Eigenbasis,
    NearestRows,
    NeighborGraph,
    extended_eigenbasis,
    heat_kernel_signature,
    heat_times,
    label_indicators,
    laplacian_eigenbasis,
    latent_distances,
    nearest_rows,
    neighbor_graph,
)
from neigenmaps.spectral.graph import Kernel
from neigenmaps.spectral.neighbors import Metric

if TYPE_CHECKING:
    Array = Tensor | NDArray[Any]

Refinement = Literal["zoomout", "icp"]
Transfer = Literal["orthogonal", "ridge", "affine"]

START_SIZES = (8, 15, 30)  # functions of the map that refinement starts from; none is best everywhere
N_SIGNATURES = 32
SEARCH_WIDTH = 128  # columns, leading principal components, in which rows of large spaces are matched
NOISE_SHARE = 0.01  # of the largest variance: directions below it are noise, which whitening would raise
INLIER_RANK = 5  # an anchor's row of Y is among so many best of its row of X


class LatentFunctionalMap:
    """Map between two spaces of different width, different numbers of rows, rows in any order.

    n_eigenvectors: functions on each space. n_neighbors: of the graphs; None is a third of the rows, at most 300, since
        too few make the functions of two spaces disagree. metric, kernel: see `neighbor_graph`.
    weights: of descriptors, Laplacian and commutativity with the descriptors in C's energy. mask: form of the Laplacian
        term, see `laplacian_mask`. refine: of the first guesses.
    transfer: how points are carried over: "orthogonal" (a rotation with scale), "ridge", or "affine" (least squares).
    robust: anchors may be wrong; then random subsets of them start the search and none is kept for its own sake.
    n_landmarks: rows of each space that get a graph and functions, drawn at random; the others' values follow by Nystroem's
        formula. None: all rows. For spaces whose graphs would not fit in memory.
    n_starts: soft assignments to try, at most, per view. random_state: of their noise.

    Fitted: functional_map_ (L, K), coefficients on X to coefficients on Y. confidence_: share of rows whose match is a
    mutual nearest neighbour under a map fitted to other pairs: near 0 for wrong matches, up to 0.3 on a few hundred rows
    in clusters. pairs_: rows of X and of Y, mutual best matches. anchor_inliers_ (P,): anchors that agree with the rest,
    None without anchors. basis_x_, basis_y_, graph_x_, graph_y_. matched_in_: "ambient", "whitened" or "spectral". map_,
    inverse_map_: of points.
    """

    def __init__(
        self,
        n_eigenvectors: int = 50,
        n_neighbors: int | None = None,
        metric: Metric = "angular",
        kernel: Kernel = "inverse_distance",
        weights: MapWeights = MapWeights(1.0, 1.0, 0.0),  # noqa: B008  immutable
        mask: MaskForm = "resolvent",
        refine: Refinement = "zoomout",
        transfer: Transfer = "orthogonal",
        robust: bool = False,
        n_landmarks: int | None = None,
        n_starts: int = 12,
        random_state: int = 0,
    ) -> None:
        self.n_eigenvectors = n_eigenvectors
        self.n_neighbors = n_neighbors
        self.metric = metric
        self.kernel = kernel
        self.weights = weights
        self.mask = mask
        self.refine = refine
        self.transfer = transfer
        self.robust = robust
        self.n_landmarks = n_landmarks
        self.n_starts = n_starts
        self.random_state = random_state

    def fit(
        self,
        X: Array,
        Y: Array,
        anchors: tuple[Any, Any] | None = None,
        labels: tuple[Any, Any] | None = None,
    ) -> Self:
        """Match the rows of X and Y.

        anchors: rows of X and the rows of Y that belong to them, two lists of one length. labels: a class for every row
            of X and of Y, whole numbers, those below 0 unknown. Without either, the shapes of the spaces must do.
        Warns (AlignmentWarning) when less than half of the rows are confirmed.

        Raises:
            ShapeError, NonFiniteError: not matrices, or not finite.
            InputError: settings out of range; anchors that are out of range, repeated or of different numbers; labels
                without a common class.
        """
        self._check_settings()
        x_NF, y_MG = checked_rows("X", X), checked_rows("Y", Y)
        if x_NF.device != y_MG.device:
            raise InputError(f"expected one device, got {x_NF.device} and {y_MG.device}: move one of them")
        smaller = min(len(x_NF), len(y_MG), *(() if self.n_landmarks is None else (self.n_landmarks,)))
        if not 2 <= self.n_eigenvectors < smaller:
            raise InputError(
                f"expected 2 <= n_eigenvectors < {smaller} (the smaller number of rows, or n_landmarks), got "
                f"{self.n_eigenvectors}: lower it, or give more rows"
            )
        pairs = anchor_pairs(anchors, len(x_NF), len(y_MG), x_NF.device, repeated=self.robust)
        classes = labelled_rows(labels, len(x_NF), len(y_MG))
        generator = torch.Generator().manual_seed(self.random_state)
        self.graph_x_, self.basis_x_ = self._space("X", x_NF)
        self.graph_y_, self.basis_y_ = self._space("Y", y_MG)
        dtype = torch.promote_types(x_NF.dtype, y_MG.dtype)
        placed_NF, placed_MG = self._placed(self.graph_x_, x_NF), self._placed(self.graph_y_, y_MG)
        ambient = View("ambient", _searched(placed_NF).to(dtype), _searched(placed_MG).to(dtype))
        spectral = View("spectral", _diffusion(self.basis_x_).to(dtype), _diffusion(self.basis_y_).to(dtype))
        whitened = View("whitened", _whitened(ambient.x_NF), _whitened(ambient.y_MG))
        views = (ambient, whitened, spectral)
        pinned = None if self.robust else pairs
        match = best_match(self._starts(views, pairs, classes, generator), views, pinned, generator)
        if match.confidence < ENOUGH:
            warnings.warn(
                f"only {match.confidence:.0%} of the rows are confirmed by the map of the others: expect wrong matches; "
                "give more anchors, other n_neighbors or a larger n_starts",
                AlignmentWarning,
                stacklevel=2,
            )
        self._settle(match, x_NF, y_MG, pairs)
        return self

    def correspondences(self) -> Correspondences:
        """For every row of X its row of Y, a score in 0..1, and whether the match is mutual."""
        self._check_fitted()
        found = correspondences_of(self._view.x_NF @ self._orthogonal_FG, self._view.y_MG)
        return replace(found, score=found.score.to(self._dtypes[0]))

    def transform(self, x_QF: Array) -> Tensor:
        """Points of X's space in Y's, seen or not, in the points' dtype. Raises ShapeError, NonFiniteError."""
        self._check_fitted()
        return self.map_(checked_rows("points", x_QF, len(self.map_.matrix_FG)))

    def inverse_transform(self, y_QG: Array) -> Tensor:
        """Points of Y's space in X's: a map fitted in that direction, not the inverse of the other."""
        self._check_fitted()
        return self.inverse_map_(checked_rows("points", y_QG, len(self.inverse_map_.matrix_FG)))

    def retrieve(self, queries_QF: Array, k: int = 10) -> NearestRows:
        """The k rows of Y nearest to every point of X's space after the map, by cosine of centred rows.

        distance_Qk is the chord between unit rows, sqrt(2 - 2 cos). Raises InputError unless 1 <= k <= M.
        """
        self._check_fitted()
        query_QF = checked_rows("queries", queries_QF, len(self.map_.matrix_FG))
        placed_QF = self._placed(self.graph_x_, query_QF)
        placed_QG = F.normalize(self._placing(placed_QF), dim=1)
        return nearest_rows(placed_QG, self._ambient_y_MG.to(placed_QG), k)

    def transfer_function(self, f_N: Array) -> Tensor:
        """A function's values on X's rows, (N,) or (N, C), taken to values on Y's rows: its smooth part, through C."""
        self._check_fitted()
        given = torch.as_tensor(f_N)
        phi_x_NK, phi_y_ML = _functions(self.basis_x_), _functions(self.basis_y_)
        if given.ndim not in (1, 2) or len(given) != len(phi_x_NK):
            raise ShapeError(f"expected values on the {len(phi_x_NK)} rows of X, got shape {tuple(given.shape)}")
        values_NC = given.reshape(len(given), -1).to(phi_x_NK)
        coefficients_KC = torch.linalg.lstsq(phi_x_NK, values_NC).solution
        carried = phi_y_ML @ (self.functional_map_.to(phi_x_NK) @ coefficients_KC)
        return carried.reshape(-1, *given.shape[1:]).to(given.dtype if given.is_floating_point() else self._dtypes[0])

    def propagate_labels(self, labels_N: Array, n_neighbors: int = 10) -> Tensor:
        """A class for every row of Y: the most frequent among the nearest rows of X; those below 0 don't vote.

        Ties go to the smallest class. Raises InputError without a label, or unless 1 <= n_neighbors <= labelled rows.
        """
        self._check_fitted()
        view = self._view
        labels = class_numbers("X", labels_N, len(view.x_NF))
        labelled = torch.nonzero(labels >= 0)[:, 0].to(view.x_NF.device)
        if not 1 <= n_neighbors <= len(labelled):
            raise InputError(f"expected 1 <= n_neighbors <= {len(labelled)} (labelled rows), got {n_neighbors}")
        placed_NG = F.normalize(view.x_NF[labelled] @ self._orthogonal_FG, dim=1)
        near_Mk = nearest_rows(F.normalize(view.y_MG, dim=1), placed_NG, n_neighbors).index_Qk
        classes_C, class_N = labels.to(labelled.device)[labelled].unique(return_inverse=True)
        votes_MC = F.one_hot(class_N, len(classes_C))[near_Mk].sum(dim=1)
        return classes_C[votes_MC.argmax(dim=1)]

    def _check_settings(self) -> None:
        if self.refine not in ("zoomout", "icp"):
            raise InputError(f"expected refine 'zoomout' or 'icp', got {self.refine!r}: name one of them")
        if self.transfer not in ("orthogonal", "ridge", "affine"):
            raise InputError(f"expected transfer 'orthogonal', 'ridge' or 'affine', got {self.transfer!r}: name one")
        if self.n_starts < 1:
            raise InputError(f"expected n_starts >= 1, got {self.n_starts}")
        if self.mask not in get_args(MaskForm):
            raise InputError(f"expected mask 'resolvent', 'squared' or 'paper', got {self.mask!r}: name one of them")
        if min(self.weights) < 0:
            raise InputError(f"expected weights of at least 0, got {self.weights}")

    def _check_fitted(self) -> None:
        if not hasattr(self, "functional_map_"):
            raise NotFittedError("expected a fitted LatentFunctionalMap: call fit(X, Y, anchors=...) first")

    def _space(self, name: str, rows_NF: Tensor) -> tuple[NeighborGraph, Eigenbasis]:
        chosen_NF = rows_NF
        if self.n_landmarks is not None and self.n_landmarks < len(rows_NF):
            order_N = torch.randperm(len(rows_NF), generator=torch.Generator().manual_seed(self.random_state))
            chosen_NF = rows_NF[order_N[: self.n_landmarks].to(rows_NF.device)]
        n_neighbors = max(1, min(300, len(chosen_NF) // 3)) if self.n_neighbors is None else self.n_neighbors
        try:
            graph = neighbor_graph(chosen_NF, n_neighbors, self.metric, self.kernel)
            basis = laplacian_eigenbasis(graph, self.n_eigenvectors, dtype=rows_NF.dtype)
            if chosen_NF is not rows_NF:  # hundreds of neighbours average out the noise that a small 1 - lambda raises
                basis = extended_eigenbasis(graph, basis, rows_NF, smallest=1e-3)
            return graph, basis
        except InputError as error:
            raise InputError(f"{name}: {error}") from error

    def _placed(self, graph: NeighborGraph, rows_NF: Tensor) -> Tensor:
        """Rows as the graph sees them (unit rows if angular, centred), of unit length."""
        return F.normalize(torch.as_tensor(graph.cloud.place(rows_NF)).to(rows_NF), dim=1)

    def _starts(
        self,
        views: tuple[View, ...],
        anchors: Pairs | None,
        classes: tuple[Tensor, Tensor] | None,
        generator: torch.Generator,
    ) -> Iterator[Start]:
        """Functional maps from what is known, then soft assignments from that, then with noise."""
        yield from self._functional_starts(views[0], anchors, classes, generator)
        known = anchors is not None or classes is not None
        for trial in range(self.n_starts):
            for view in views:
                chosen = self._subset(view, anchors, trial, generator) if self.robust else anchors
                pinned = None if self.robust else anchors
                moment_FG = _known_moment(view, chosen, classes)
                noise_FG = torch.randn(moment_FG.shape, generator=generator, dtype=torch.float64).to(moment_FG)
                share = float(trial > 0 or not known)
                yield Start(view, moment_FG=moment_FG + share * noise_FG / noise_FG.norm(), pinned=pinned)

    def _functional_starts(
        self,
        ambient: View,
        anchors: Pairs | None,
        classes: tuple[Tensor, Tensor] | None,
        generator: torch.Generator,
    ) -> Iterator[Start]:
        functions_x, functions_y = self._descriptors(ambient, anchors, classes)
        phi_x_NK, phi_y_ML = _functions(self.basis_x_), _functions(self.basis_y_)
        values_x_K, values_y_L = self.basis_x_.eigenvalues_K.double(), self.basis_y_.eigenvalues_K.double()
        a_KP, b_LP = phi_x_NK.T @ functions_x / len(phi_x_NK), phi_y_ML.T @ functions_y / len(phi_y_ML)
        scale = (a_KP.square().sum() + b_LP.square().sum()) / 2 / self.n_eigenvectors
        mask_LK = laplacian_mask(values_x_K, values_y_L, self.mask) + 1e-4  # where eigenvalues agree, too, one minimum
        terms = MapTerms(a_KP, b_LP, scale * mask_LK, weights=self.weights)
        if self.weights.commutativity:
            even_N, even_M = (torch.full_like(phi[:, 0], 1 / len(phi)) for phi in (phi_x_NK, phi_y_ML))
            s_PKK = multiplication_operators(phi_x_NK, functions_x, even_N)
            terms = terms._replace(s_JKK=s_PKK, t_JLL=multiplication_operators(phi_y_ML, functions_y, even_M))
        first_L = torch.eye(self.n_eigenvectors, dtype=a_KP.dtype, device=a_KP.device)[0]
        c_LK = solve_functional_map(terms, first_column_L=first_L)
        y_rows = sampled_rows(ambient.y_MG, None, generator)  # as many as determine C; their matches are among all of X
        phi_y_ML = phi_y_ML[y_rows]
        for size in START_SIZES:
            if size > self.n_eigenvectors:
                break
            if self.refine == "zoomout":
                sizes = zoomout_sizes(values_x_K, values_y_L, size)
                refined_LK = zoomout(c_LK, phi_x_NK, phi_y_ML, sizes, nearest=_nearest)
            else:
                refined_LK = icp(c_LK[:size, :size], phi_x_NK[:, :size], phi_y_ML[:, :size], nearest=_nearest)
            k_y, k_x = refined_LK.shape
            x_row_of_y_M = rows_from_map(refined_LK, phi_x_NK[:, :k_x], phi_y_ML[:, :k_y], _nearest)
            yield Start(ambient, pairs=Pairs(x_row_of_y_M, y_rows))

    def _descriptors(
        self, ambient: View, anchors: Pairs | None, classes: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor]:
        """Functions that should correspond, (N, P) and (M, P), with mean 0 and variance 1."""
        found: list[tuple[Tensor, Tensor]] = []
        if anchors is not None:
            sides = zip((ambient.x_NF, ambient.y_MG), anchors, strict=True)
            distances = [latent_distances(rows.double(), anchor_P) for rows, anchor_P in sides]
            found.append(
                (torch.exp(-distances[0] / distances[0].median()), torch.exp(-distances[1] / distances[1].median()))
            )
        if classes is not None:
            common = common_classes(*classes)
            found.append((label_indicators(classes[0], common), label_indicators(classes[1], common)))
        if not found:
            times = heat_times(N_SIGNATURES, self.basis_x_, self.basis_y_)
            found.append((heat_kernel_signature(self.basis_x_, times), heat_kernel_signature(self.basis_y_, times)))
        x_NP, y_MP = (torch.cat([pair[side].to(ambient.x_NF.device) for pair in found], dim=1) for side in (0, 1))
        return _standardised(x_NP), _standardised(y_MP)

    def _subset(self, view: View, anchors: Pairs | None, trial: int, generator: torch.Generator) -> Pairs | None:
        """The half that agrees best, then all, then triples at random, those that agree more often."""
        if anchors is None or trial == 1:
            return anchors
        n = len(anchors.x_P)
        agreement_P = _agreement(view, anchors)
        if trial == 0:
            chosen = agreement_P.topk(min(n, max(3, n // 2))).indices
        else:
            chosen = torch.multinomial(agreement_P.cpu(), min(n, 3), generator=generator).to(agreement_P.device)
        return Pairs(anchors.x_P[chosen], anchors.y_P[chosen])

    def _settle(self, match: Match, x_NF: Tensor, y_MG: Tensor, anchors: Pairs | None) -> None:
        """Learned state out of the best match: maps of points and of functions, inliers."""
        self._dtypes = (x_NF.dtype, y_MG.dtype)
        self._view, self.matched_in_, self.confidence_ = match.view, match.view.name, match.confidence
        pairs = self.pairs_ = match.pairs
        rows_x, rows_y = match.view.x_NF[pairs.x_P], match.view.y_MG[pairs.y_P]
        turn = orthogonal_map(rows_x, rows_y, translation=False)
        self._orthogonal_FG = turn.matrix_FG.to(rows_x)
        self.anchor_inliers_ = None if anchors is None else self._inliers(anchors)
        phi_x_NK, phi_y_ML = _functions(self.basis_x_)[pairs.x_P], _functions(self.basis_y_)[pairs.y_P]
        own_P = torch.arange(len(pairs.x_P), device=x_NF.device)
        c_LK = map_from_rows(phi_x_NK, phi_y_ML, own_P)
        self.functional_map_ = c_LK.to(torch.promote_types(*self._dtypes))
        self._ambient_y_MG = self._placed(self.graph_y_, y_MG)
        placed_P = self._placed(self.graph_x_, x_NF[pairs.x_P])
        self._placing = self._fitted_map(placed_P, self._ambient_y_MG[pairs.y_P], scale=False)
        self.map_ = self._fitted_map(x_NF[pairs.x_P], y_MG[pairs.y_P], scale=True)
        self.inverse_map_ = self._fitted_map(y_MG[pairs.y_P], x_NF[pairs.x_P], scale=True)

    def _fitted_map(self, x_PF: Tensor, y_PG: Tensor, *, scale: bool) -> AffineMap:
        if self.transfer == "orthogonal":
            return orthogonal_map(x_PF, y_PG, scale=scale, translation=scale)
        return ridge_map(x_PF, y_PG, ridge=0.0 if self.transfer == "affine" else 1e-2)

    def _inliers(self, anchors: Pairs) -> Tensor:
        placed_PG = self._view.x_NF[anchors.x_P] @ self._orthogonal_FG
        score_PM = cosines(placed_PG, self._view.y_MG)
        own_P1 = score_PM.gather(1, anchors.y_P[:, None])
        return (score_PM > own_P1).sum(dim=1) < INLIER_RANK


def _searched(rows_NF: Tensor) -> Tensor:
    """Unit rows in the coordinates that the search works in: of large, wide spaces the leading principal components."""
    if len(rows_NF) <= DENSE_UP_TO or rows_NF.shape[1] <= SEARCH_WIDTH:
        return rows_NF
    axes_FF = torch.linalg.eigh((rows_NF.T @ rows_NF).double()).eigenvectors
    return F.normalize(rows_NF @ axes_FF[:, -SEARCH_WIDTH:].to(rows_NF), dim=1)


def _whitened(rows_NF: Tensor) -> Tensor:
    """Rows on their principal axes, of variance v^2 / (v^2 + (0.01 v_max)^2): 1 where strong, 0 where noise."""
    values_F, axes_FF = torch.linalg.eigh((rows_NF.T @ rows_NF).double() / len(rows_NF))
    values_F = values_F.clamp_min(0)
    scale_F = (values_F / (values_F.square() + (NOISE_SHARE * values_F[-1]).square())).sqrt()
    return F.normalize(rows_NF @ (axes_FF * scale_F).to(rows_NF), dim=1)


def _nearest(queries_QK: Tensor, points_NK: Tensor) -> Tensor:
    return nearest_rows(queries_QK, points_NK, exact=False).index_Qk[:, 0]


def _functions(basis: Eigenbasis) -> Tensor:
    """Eigenfunctions of mean square 1, so that a value means the same on spaces of different size; float64."""
    return basis.eigenvectors_NK.double() * len(basis.eigenvectors_NK) ** 0.5


def _diffusion(basis: Eigenbasis) -> Tensor:
    """Eigenfunctions but the first, each times the root of its affinity 1 - lambda."""
    return (_functions(basis) * (1 - basis.eigenvalues_K).clamp_min(0).sqrt())[:, 1:]


def _known_moment(view: View, anchors: Pairs | None, classes: tuple[Tensor, Tensor] | None) -> Tensor:
    """sum x_n^T p_nm y_m over the soft matches that anchors and labels give, of norm 1; zeros when nothing is known."""
    moment_FG = view.x_NF.new_zeros(view.x_NF.shape[1], view.y_MG.shape[1])
    if anchors is not None:
        moment_FG = moment_FG + view.x_NF[anchors.x_P].T @ view.y_MG[anchors.y_P] / len(anchors.x_P)
    if classes is not None:
        common = common_classes(*classes)
        x_NC, y_MC = (label_indicators(side, common).to(moment_FG) for side in classes)
        share_C = x_NC.mean(dim=0)
        means = view.x_NF.T @ (x_NC / x_NC.sum(dim=0)) * share_C, view.y_MG.T @ (y_MC / y_MC.sum(dim=0))
        moment_FG = moment_FG + means[0] @ means[1].T
    return moment_FG / moment_FG.norm().clamp_min(1e-12)


def _agreement(view: View, anchors: Pairs) -> Tensor:
    """How well each anchor fits the others, above 0: first eigenvector of exp(-(cos_x - cos_y)^2 / mean square).

    Right anchors keep their angles with each other, a wrong one with few (Leordeanu & Hebert 2005). (P,), of sum 1.
    """
    x_PF, y_PG = view.x_NF[anchors.x_P].double(), view.y_MG[anchors.y_P].double()
    square_PP = (cosines(x_PF, x_PF) - cosines(y_PG, y_PG)).square()
    kept_PP = torch.exp(-2 * square_PP / square_PP.mean().clamp_min(1e-12))
    return F.normalize(torch.linalg.eigh(kept_PP).eigenvectors[:, -1].abs() + 1e-6, p=1, dim=0)


def _standardised(functions_NP: Tensor) -> Tensor:
    centred_NP = functions_NP.double() - functions_NP.double().mean(dim=0)
    deviation_P = centred_NP.square().mean(dim=0).sqrt()
    return centred_NP / torch.where(deviation_P > 1e-12, deviation_P, 1.0)
