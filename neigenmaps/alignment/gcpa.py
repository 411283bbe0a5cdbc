"""Geometry-corrected Procrustes alignment: a GPA, and a correction of its universe toward what all spaces agree on."""

from __future__ import annotations

import copy
import functools
import itertools
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Self, get_args

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from neigenmaps.alignment.aligner import AbstractAligner
from neigenmaps.alignment.gpa import GPA
from neigenmaps.alignment.rows import MatchedRows, Rows, matched_rows
from neigenmaps.errors import ConvergenceWarning, InputError, NotFittedError, ShapeError, UnknownNameError
from neigenmaps.functional.cross_moments import block_slices
from neigenmaps.functional.geometry_correction import (
    CorrectionMoments,
    Drift,
    Ridged,
    after_ridge,
    agreement_map,
    correction_moments,
    diagonal_correction,
    drift,
    drift_summary,
    ridge_correction,
)
from neigenmaps.functional.linear_maps import ridge_toward_identity
from neigenmaps.functional.mlp_correction import MLPCorrection, fit_mlp_correction

Corrector = Literal["auto", "none", "diagonal", "shared_ridge", "model_ridge", "agreement", "mlp"]
LADDER = ("none", "diagonal", "shared_ridge", "model_ridge", "agreement")
RIDGES = {  # of which held-out rows choose where none is given, strongest first
    "shared_ridge": (0.1, 0.001),
    "model_ridge": (1.0, 0.1, 0.01, 0.001),
    "agreement": (1.0, 0.1, 0.01, 0.001),
}
SHRINKAGES = (0.1, 0.001)
CHUNK_ROWS = 4096
DECODER_RIDGE = 1e-3  # as LinearMap's
LARGEST_GALLERY = 400  # held-out rows ranked at a time
FOLD_TOLERANCE = 1e-5  # of a GPA that only serves to choose
ENOUGH_ROWS = 1500  # held-out rows over all folds; with five times as many rows the first fold has them all


class Setting(NamedTuple):
    """One correction to try: a rung of the ladder and what it needs to be known."""

    corrector: str
    ridge: float | None = None
    shrinkage: float | None = None


class GCPA(AbstractAligner):
    """u -> T_m(u) behind the maps of a GPA: see `functional.geometry_correction` for the ladder of linear corrections.

    corrector: a rung, "none", "diagonal", "shared_ridge", "model_ridge" or "agreement"; "mlp", the published network (see
        `functional.mlp_correction`; not invertible, 100 times slower); or "auto": the first rung of the ladder that is
        within a standard error of the best in Rank-1 over all ordered pairs, on rows held out of GPA and correction, or
        on those given as `validation`.
    gpa: the alignment to begin with, unfitted; a robust one's trust in each row weighs it here too.
    ridge, shrinkage: None is chosen on the same held-out rows.
    folds: of these, each holds out 1 / folds of the rows.

    `inverse_transform` undoes linear corrections exactly, whatever stands in a code. `translate` doesn't: to undo what shrank
    another space's noise would enlarge it, so it takes the regression of the target on the codes of all others. The network
    is not undone, in either.

    Fitted: gpa_; corrector_, ridge_ and shrinkage_ as chosen; corrections_ by name, (K, K) or the network, none for
    "none"; decoders_ by name, (K, K), that `translate` puts between undoing the target's correction and its turn; scores_,
    held-out Rank-1 by rung, empty when nothing had to be chosen; drift_ of the rows fitted.
    """

    gpa_: GPA
    corrector_: str
    ridge_: float | None
    shrinkage_: float | None
    corrections_: dict[str, Tensor | MLPCorrection]
    scores_: dict[str, float]
    decoders_: dict[str, Tensor]
    drift_: Drift

    def __init__(
        self,
        corrector: Corrector = "auto",
        *,
        gpa: GPA | None = None,
        ridge: float | None = None,
        shrinkage: float | None = None,
        folds: int = 5,
        mlp_tolerance: float = 0.08,
        mlp_penalty: float = 0.7,
        mlp_max_steps: int = 10_000,
        random_state: int = 0,
    ) -> None:
        self.corrector = corrector
        self.gpa = gpa
        self.ridge = ridge
        self.shrinkage = shrinkage
        self.folds = folds
        self.mlp_tolerance = mlp_tolerance
        self.mlp_penalty = mlp_penalty
        self.mlp_max_steps = mlp_max_steps
        self.random_state = random_state

    def fit(
        self,
        spaces: Mapping[str, Rows] | Sequence[Rows],
        *,
        weights: Rows | None = None,
        masks: Mapping[str, Tensor | NDArray[np.bool_]] | None = None,
        doubt_above: float = 0.05,
        validation: Mapping[str, Rows] | None = None,
    ) -> Self:
        """As every aligner's. validation: matched rows of some of the spaces to choose on, in place of folds.

        Give rows that the ENCODERS haven't learned from, where they learned from the rows fitted: an encoder's own training
        rows are not like any others to it, and folds of them choose too simple a correction.

        Raises UnknownNameError for validation rows of another space, ShapeError for another width.
        """
        self._validation = None if validation is None else matched_rows(validation)
        return super().fit(spaces, weights=weights, masks=masks, doubt_above=doubt_above)

    def _learn(self, rows: MatchedRows) -> None:
        settings = self._settings()
        self._check_validation(rows)
        chosen = self._choose(rows, settings) if len(settings) > 1 else settings[0]
        if len(settings) == 1:
            self.scores_ = {}
        self.corrector_, self.ridge_, self.shrinkage_ = chosen
        self.gpa_ = self._aligned(rows)
        self.n_components_ = self.gpa_.n_components_
        self._after_KK: Tensor | None = None
        if chosen.corrector == "none":
            self.corrections_ = {}
        elif chosen.corrector == "mlp":
            network = self._trained(rows)
            self.corrections_ = dict.fromkeys(rows.names, network)
        else:
            moments = _moments(self.gpa_, rows, self.gpa_.row_trust_)
            maps_MKK, self._after_KK = _linear_maps(
                moments, chosen, functools.cache(functools.partial(after_ridge, moments))
            )
            self.corrections_ = dict(zip(rows.names, maps_MKK, strict=True))
        self.decoders_ = {} if chosen.corrector == "mlp" else self._decoders(rows.names, rows.names)
        self.drift_ = self._drift(rows)

    def _learn_newcomer(self, rows: MatchedRows) -> None:
        """Its GPA map; then the shared correction, or a ridge of its own toward the consensus of those that know."""
        *known, name = rows.names
        gpa = copy.copy(self.gpa_)
        gpa._learn_newcomer(rows)
        gpa._settle((*self.names_, name), rows, keep_rows=False)
        self.gpa_ = gpa
        if self.corrector_ in ("model_ridge", "agreement"):
            moments = _moments(gpa, rows, None)
            newcomer = ridge_correction(moments, ridge=self.ridge_ or 0.0, shared=False)[-1]
            if self._after_KK is not None:
                newcomer = newcomer @ self._after_KK
            self.corrections_ = {**self.corrections_, name: newcomer}
        elif self.corrections_:
            self.corrections_ = {**self.corrections_, name: self.corrections_[known[0]]}
        if self.corrector_ != "mlp":
            self.decoders_ = {**self.decoders_, **self._decoders((*self.names_, name), (name,))}

    def _relearn(self) -> None:
        if self._rows is None:
            raise NotFittedError("expected rows to learn from, but a loaded GCPA keeps none: call fit")
        self._learn(self._rows)

    def _to_universe(self, x_NF: Tensor, source: str) -> Tensor:
        return self._corrected(self.gpa_._to_universe(x_NF, source), source)

    def _corrected(self, u_NK: Tensor, source: str) -> Tensor:
        if not self.corrections_:
            return u_NK
        correction = self.corrections_[source]
        return correction(u_NK) if isinstance(correction, MLPCorrection) else u_NK @ correction.to(u_NK)

    def _from_universe(self, u_NK: Tensor, target: str) -> Tensor:
        return self.gpa_._from_universe(self._uncorrected(u_NK, target), target)

    def _uncorrected(self, u_NK: Tensor, target: str) -> Tensor:
        correction = self.corrections_.get(target)
        if not isinstance(correction, Tensor):
            return u_NK
        return torch.linalg.solve(correction.T, u_NK.to(correction).T).T.to(u_NK)

    def _translate(self, x_NF: Tensor, source: str, target: str) -> Tensor:
        if source == target:
            return x_NF.clone()
        u_NK = self._to_universe(x_NF, source)
        if self.decoders_:
            u_NK = self._uncorrected(u_NK, target) @ self.decoders_[target].to(u_NK)
            return self.gpa_._from_universe(u_NK, target)
        return self._from_universe(u_NK, target)

    def _decoders(self, names: tuple[str, ...], targets: tuple[str, ...]) -> dict[str, Tensor]:
        """By target: from what others' codes become when its correction is undone, to its own rows in the universe."""
        moments = self.gpa_.moments_
        sums_DD, columns = moments.centred(), dict(zip(names, block_slices(moments.widths), strict=True))
        encode = {name: self._corrected(self.gpa_.maps_[name].to_FK, name) for name in names}
        decoders = {}
        for target in targets:
            turned_DK = sums_DD[:, columns[target]] @ self.gpa_.maps_[target].to_FK
            own_KK, cross_KK = torch.zeros(2, self.n_components_, self.n_components_).to(sums_DD)
            for name in names:
                both, own = (moments.weight_MM[names.index(name), names.index(other)] for other in (target, name))
                if name != target and both > 0:  # a space's own rows count as often as the pair has them
                    own_KK += both / own * encode[name].T @ (sums_DD[columns[name], columns[name]] @ encode[name])
                    cross_KK += encode[name].T @ turned_DK[columns[name]]
            own_KK = self._uncorrected(self._uncorrected(own_KK, target).T, target)
            cross_KK = self._uncorrected(cross_KK.T, target).T
            decoders[target] = ridge_toward_identity(own_KK, cross_KK, DECODER_RIDGE)
        return decoders

    def _aligned(self, rows: MatchedRows, tolerance: float = 0.0) -> GPA:
        gpa = GPA(**(self.gpa or GPA())._parameters())
        gpa.tolerance = max(gpa.tolerance, tolerance)
        gpa._learn(rows)
        gpa._settle(rows.names, rows, keep_rows=False)
        return gpa

    def _settings(self) -> list[Setting]:
        """What is to be tried, the simplest first; one needs no choice."""
        if self.corrector not in get_args(Corrector):
            raise UnknownNameError("corrector", self.corrector, get_args(Corrector))
        if self.folds < 2:
            raise InputError(f"expected folds >= 2, got {self.folds}: one part is held out of the others")
        for name, value in (("ridge", self.ridge), ("shrinkage", self.shrinkage)):
            if value is not None and not value > 0:
                raise InputError(f"expected {name} above 0, got {value}: it is relative, 0.01 is a common value")
        settings = []
        for rung in LADDER if self.corrector == "auto" else (self.corrector,):
            ridges = RIDGES.get(rung, (None,)) if self.ridge is None or rung not in RIDGES else (self.ridge,)
            shrinkages = SHRINKAGES if self.shrinkage is None else (self.shrinkage,)
            for ridge in ridges:
                for shrinkage in shrinkages if rung == "agreement" else (None,):
                    settings.append(Setting(rung, ridge, shrinkage))
        return settings

    def _check_validation(self, rows: MatchedRows) -> None:
        if self._validation is None:
            return
        for name, x_NF in zip(self._validation.names, self._validation.spaces, strict=True):
            if name not in rows.names:
                raise UnknownNameError("space", name, rows.names)
            width = rows.spaces[rows.names.index(name)].shape[1]
            if x_NF.shape[1] != width:
                raise ShapeError(
                    f"expected validation rows of {name!r} with width {width}, got {tuple(x_NF.shape)}: give unseen rows "
                    "of the same encoder"
                )

    def _choose(self, rows: MatchedRows, settings: list[Setting]) -> Setting:
        """The first rung within a standard error of the best. Within a rung, the best."""
        if self._validation is None:
            hits_NS = self._hits_of_folds(rows, settings)
        else:
            hits_NS = self._held_out_hits(rows, [self._validation], settings)
        means_S = hits_NS.mean(dim=0).tolist()
        best: dict[str, int] = {}
        for place, setting in enumerate(settings):
            if setting.corrector not in best or means_S[place] > means_S[best[setting.corrector]]:
                best[setting.corrector] = place
        self.scores_ = {rung: means_S[place] for rung, place in best.items()}
        top = max(best.values(), key=means_S.__getitem__)
        for place in best.values():
            lost_N = hits_NS[:, top] - hits_NS[:, place]
            if lost_N.mean() <= lost_N.std() / len(lost_N) ** 0.5:
                return settings[place]
        return settings[top]

    def _hits_of_folds(self, rows: MatchedRows, settings: list[Setting]) -> Tensor:
        folds = min(self.folds, len(rows) // 4)
        if folds < 2:
            raise InputError(
                f"expected at least 8 rows to choose a correction on, got {len(rows)}: name corrector and ridge"
            )
        generator = torch.Generator().manual_seed(self.random_state)
        order_N = torch.randperm(len(rows), generator=generator).to(rows.spaces[0].device)
        hits: list[Tensor] = []
        for part_N in order_N.chunk(folds):
            train_N = order_N[~torch.isin(order_N, part_N)]
            held_N = part_N[:ENOUGH_ROWS]
            galleries = [rows.take(some_N) for some_N in held_N.chunk(-(-len(held_N) // LARGEST_GALLERY))]
            hits.append(self._held_out_hits(rows.take(train_N), galleries, settings))
            if sum(len(part) for part in hits) >= ENOUGH_ROWS:
                break
        return torch.cat(hits)

    def _held_out_hits(self, train: MatchedRows, galleries: list[MatchedRows], settings: list[Setting]) -> Tensor:
        """Rank-1 of every held-out row that two spaces have, mean over their ordered pairs, by setting (N, S)."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # said of the final fit if it is so
            gpa = self._aligned(train, FOLD_TOLERANCE)
        moments = _moments(gpa, train, gpa.row_trust_)
        held = [
            (F.normalize(u_MNK, dim=2), weights_MN > 0)
            for u_MNK, weights_MN in (_universe_rows(gpa, gallery, None) for gallery in galleries)
        ]
        places = [train.names.index(name) for name in galleries[0].names]
        columns, ridged = [], functools.cache(functools.partial(after_ridge, moments))
        for setting in settings:
            maps = None if setting.corrector == "none" else _linear_maps(moments, setting, ridged)[0][places]
            hits = [_mean_hits(unit if maps is None else unit @ maps, present) for unit, present in held]
            columns.append(torch.cat(hits))
        hits_NS = torch.stack(columns, dim=1)
        return hits_NS[~hits_NS.isnan().any(dim=1)]

    def _trained(self, rows: MatchedRows) -> MLPCorrection:
        u_MNK, weights_MN = _universe_rows(self.gpa_, rows, self.gpa_.row_trust_)
        return fit_mlp_correction(
            u_MNK,
            weights_MN,
            generator=torch.Generator().manual_seed(self.random_state),
            tolerance=self.mlp_tolerance,
            penalty=self.mlp_penalty,
            max_steps=self.mlp_max_steps,
        ).correction

    def _drift(self, rows: MatchedRows) -> Drift:
        if not self.corrections_:
            return Drift(0.0, 0.0, 0.0)
        parts = []
        for name, x_NF in zip(rows.names, rows.spaces, strict=True):
            for chunk_BF in x_NF[rows.present(name)].split(CHUNK_ROWS):
                u_BK = self.gpa_._to_universe(chunk_BF.double(), name)
                parts.append(drift(self._corrected(u_BK, name), u_BK))
        return drift_summary(torch.cat(parts).cpu())

    def _parameters(self) -> dict[str, Any]:
        return {name: value for name, value in super()._parameters().items() if name != "gpa"}

    def _state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors, gpa_facts = self.gpa_._state()
        tensors = {f"gpa.{key}": tensor for key, tensor in tensors.items()}
        for m, name in enumerate(self.names_ if self.corrections_ else ()):
            correction = self.corrections_[name]
            if isinstance(correction, MLPCorrection):
                tensors |= {f"network.{field}": value for field, value in correction._asdict().items()}
            else:
                tensors[f"correction.{m}"] = correction.clone()  # spaces may share one, files must not
        tensors |= {f"decoder.{self.names_.index(name)}": decoder for name, decoder in self.decoders_.items()}
        if self._after_KK is not None:
            tensors["after"] = self._after_KK
        return tensors, {
            "gpa": {"parameters": self.gpa_._parameters(), "facts": gpa_facts},
            **{name: getattr(self, f"{name}_") for name in ("corrector", "ridge", "shrinkage", "scores", "drift")},
        }

    def _restore(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        gpa = GPA(**facts["gpa"]["parameters"])
        self.gpa = GPA(**facts["gpa"]["parameters"])
        gpa.names_, gpa.widths_, gpa.n_components_, gpa._rows = self.names_, self.widths_, self.n_components_, None
        gpa._restore(
            {key.removeprefix("gpa."): tensor for key, tensor in tensors.items() if key.startswith("gpa.")},
            facts["gpa"]["facts"],
        )
        self.gpa_, self._after_KK = gpa, tensors.get("after")
        for name in ("corrector", "ridge", "shrinkage", "scores"):
            setattr(self, f"{name}_", facts[name])
        self.drift_ = Drift(*facts["drift"])
        self.decoders_ = {}
        if self.corrector_ != "mlp":
            self.decoders_ = {name: tensors[f"decoder.{m}"] for m, name in enumerate(self.names_)}
        if self.corrector_ == "none":
            self.corrections_ = {}
        elif self.corrector_ == "mlp":
            network = MLPCorrection(*(tensors[f"network.{field}"] for field in MLPCorrection._fields))
            self.corrections_ = dict.fromkeys(self.names_, network)
        else:
            self.corrections_ = {name: tensors[f"correction.{m}"] for m, name in enumerate(self.names_)}


def _moments(gpa: GPA, rows: MatchedRows, trust_NM: Tensor | None) -> CorrectionMoments:
    chunks = torch.arange(len(rows), device=rows.spaces[0].device).split(CHUNK_ROWS)
    parts = (
        correction_moments(*_universe_rows(gpa, rows.take(part_B), None if trust_NM is None else trust_NM[part_B]))
        for part_B in chunks
    )
    return functools.reduce(CorrectionMoments.merge, parts)


def _universe_rows(gpa: GPA, rows: MatchedRows, trust_NM: Tensor | None) -> tuple[Tensor, Tensor]:
    """Rows of all spaces in the universe (M, N, K) float64, and how much each counts (M, N)."""
    u_MNK = torch.stack(
        [gpa._to_universe(x_NF.double(), name) for name, x_NF in zip(rows.names, rows.spaces, strict=True)]
    )
    weights_MN = u_MNK.new_ones(u_MNK.shape[:2]) if rows.scale_NM is None else rows.scale_NM.T.to(u_MNK).square()
    return u_MNK, weights_MN if trust_NM is None else weights_MN * trust_NM.T.to(u_MNK)


def _linear_maps(
    moments: CorrectionMoments, setting: Setting, ridged: Callable[[float], Ridged]
) -> tuple[Tensor, Tensor | None]:
    """Maps of all spaces (M, K, K), and the shared last factor that a newcomer's ridge needs after it."""
    n_models = len(moments.target_MKK)
    if setting.corrector == "diagonal":
        return diagonal_correction(moments).expand(n_models, -1, -1), None
    assert setting.ridge is not None
    if setting.corrector == "shared_ridge":
        return ridge_correction(moments, ridge=setting.ridge, shared=True), None
    if setting.corrector == "model_ridge":
        return ridged(setting.ridge).maps_MKK, None
    assert setting.shrinkage is not None
    after_KK = agreement_map(ridged(setting.ridge), setting.shrinkage)
    return ridged(setting.ridge).maps_MKK @ after_KK, after_KK


def _mean_hits(codes_MNK: Tensor, present_MN: Tensor) -> Tensor:
    """Rank-1 of every row, ties against, mean over the ordered pairs of spaces that both have it; NaN where none does."""
    n_models, n_rows, _ = codes_MNK.shape
    unit_MNK = F.normalize(codes_MNK, dim=2).float()
    total_N, count_N = torch.zeros(2, n_rows, dtype=torch.float64, device=codes_MNK.device)
    for source, target in itertools.permutations(range(n_models), 2):
        both_N = (present_MN[source] & present_MN[target]).nonzero()[:, 0]
        query_QK, gallery_QK = unit_MNK[source, both_N], unit_MNK[target, both_N]
        own_Q = torch.arange(len(both_N), device=both_N.device)
        for part_B in own_Q.split(CHUNK_ROWS):
            cosine_BQ = query_QK[part_B] @ gallery_QK.T
            as_near_B = (cosine_BQ >= cosine_BQ.gather(1, part_B[:, None])).sum(dim=1)
            total_N[both_N[part_B]] += (as_near_B == 1).double()
        count_N[both_N] += 1
    return total_N / count_N.where(count_N > 0, torch.nan)
