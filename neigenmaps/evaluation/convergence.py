"""How far a representation has converged toward reference models: what the callback and the command both call.

    panel = ReferencePanel({"pixels": PixelReference()}, probe, cache="cache")   # embeds, solves and fits once
    alignment = panel.align(embed_layers(model, probe.images_NCHW, ["backbone"]))    # at every checkpoint
    alignment.values["backbone"]["pixels"]["lfm"]["calibrated"]

Whatever does not change while training runs lies in the panel: the references' features, their eigenbases, and the
universe fitted over them. A checkpoint costs one graph, one small eigenproblem, and products.

Every measure is calibrated by permuting rows: 0 is what unrelated rows give, 1 the best there is.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from neigenmaps.alignment import GCPA, lfm_similarity, similarity_basis, similarity_graph
from neigenmaps.data import ImageStore
from neigenmaps.errors import AlignmentWarning, CheckpointError, InputError, RowMismatchError, UnknownNameError
from neigenmaps.evaluation.alignments import (
    Alignment,
    Facts,
    Interval,
    basis_of,
    basis_overlap,
    read_kind,
    tensors_of,
    write_kind,
)
from neigenmaps.evaluation.baselines import principal_components
from neigenmaps.evaluation.fold_intervals import (
    FoldSpace,
    functions_without,
    jackknife_interval,
    means_without,
    probe_folds,
)
from neigenmaps.evaluation.references import Reference
from neigenmaps.features import fingerprint_rows
from neigenmaps.functional.linear_maps import polar_factor
from neigenmaps.functional.pair_ranking import pair_ranks
from neigenmaps.functional.similarity import Similarity, linear_cka, mutual_knn, procrustes_distance
from neigenmaps.nn import NeuralEigenmapModel
from neigenmaps.nn.encoders import evaluation_mode
from neigenmaps.spectral import Eigenbasis

Layer = Literal["backbone", "projector"]
Method = Literal["lfm", "gcpa"]
Measure = Literal["unbiased_cka", "mutual_knn", "procrustes"]
Smooth = tuple[Sequence[Tensor], Sequence[Tensor]]  # as `functions_without` gives them

MEASURES: Mapping[str, Callable[..., Similarity]] = {
    "unbiased_cka": lambda a, b, **null: linear_cka(a, b, unbiased=True, **null),
    "mutual_knn": mutual_knn,
    "procrustes": procrustes_distance,
}
LEAST_ROWS = 40
NEWCOMER = " checkpoint"  # among the universe's names, where a reference may be called as it likes
CHUNK = 512  # images of one pass
REFERENCE = "Reference"  # kind of file
COMPARABLE = ("probe", "references", "settings")  # facts that must agree in one curve


@dataclass(frozen=True)
class AlignmentSettings:
    """What is measured. n_permutations: of every null. n_neighbors: of the graphs; None as in `lfm_similarity`.

    n_components: leading principal components that Procrustes and the universe see of every space: their cost is cubic in
    it, and what lies beyond is mostly noise. refit: fit the universe anew with every checkpoint in it, on a par with the
    references, in place of adding it to theirs: slower, and no more one universe for all checkpoints.
    """

    methods: Sequence[Method] = ("lfm", "gcpa")
    measures: Sequence[Measure] = ("unbiased_cka", "mutual_knn", "procrustes")
    n_eigenvectors: int = 30
    n_neighbors: int | None = None
    n_permutations: int = 49
    n_components: int = 64
    seed: int = 0
    refit: bool = False

    def __post_init__(self) -> None:
        for kind, names, known in (
            ("method", self.methods, get_args(Method)),
            ("measure", self.measures, tuple(MEASURES)),
        ):
            for name in names:
                if name not in known:
                    raise UnknownNameError(kind, name, known)
        if self.n_permutations < 2 or self.n_eigenvectors < 2:
            raise InputError(
                f"expected n_permutations and n_eigenvectors of at least 2, got {self.n_permutations} and {self.n_eigenvectors}"
            )


class ReferencePanel:
    """References on one probe set, with everything that stays the same while a model trains.

    cache: folder for the references' features and bases, by weights and probe set; None keeps nothing.

    Raises:
        InputError: no references, fewer than 40 images, n_eigenvectors not below their number; what a reference refuses.
        RowMismatchError, ShapeError, NonFiniteError: features that do not fit the probe set, see `Reference.features`.
    """

    def __init__(
        self,
        references: Mapping[str, Reference],
        probe: ImageStore,
        settings: AlignmentSettings | None = None,
        *,
        cache: str | Path | None = None,
    ) -> None:
        self.settings = settings or AlignmentSettings()
        if not references:
            raise InputError("expected at least one reference, got none: name one, such as pixels=pixels")
        if len(probe) < LEAST_ROWS or len(probe) <= self.settings.n_eigenvectors:
            raise InputError(
                f"expected a probe set of at least {max(LEAST_ROWS, self.settings.n_eigenvectors + 1)} images, got "
                f"{len(probe)}: take more, or lower n_eigenvectors"
            )
        self.probe, self.fingerprint = probe, fingerprint_rows(probe.images_NCHW)
        self.folds = probe_folds(len(probe), self.settings.seed)
        prepared = {
            name: self._prepared(one, None if cache is None else Path(cache)) for name, one in references.items()
        }
        self.features: dict[str, Tensor] = {name: found[0] for name, found in prepared.items()}
        self.bases: dict[str, Eigenbasis] = {name: found[1] for name, found in prepared.items()}
        self.facts: dict[str, Any] = {
            "probe": self.fingerprint,
            "references": {name: reference.key() for name, reference in references.items()},
            "settings": _plain(self.settings),
        }
        order_N = torch.randperm(len(probe), generator=torch.Generator().manual_seed(self.settings.seed))
        self.fit_rows, self.held_rows = order_N[: len(probe) // 2], order_N[len(probe) // 2 :]
        self.leading = {name: self._leading(rows_NF) for name, rows_NF in self.features.items()}
        self.spaces = {
            name: FoldSpace.of(self.features[name], self.leading[name], smooth, self.folds)
            for name, (_, _, smooth) in prepared.items()
        }
        self.universe: GCPA | None = None
        if "gcpa" in self.settings.methods and len(references) >= 2:
            known = {name: rows_NK[self.fit_rows] for name, rows_NK in self.leading.items()}
            self.universe = GCPA(random_state=self.settings.seed).fit(known, doubt_above=1.0)
            self.placed = self._placed(self.universe)  # a newcomer changes no map
            middle_HK = torch.stack(list(self.placed.values())).mean(dim=0)
            # two axes that no checkpoint changes, so that its rows can be followed through training
            self.axes_K2 = torch.linalg.svd(middle_HK - middle_HK.mean(dim=0), full_matrices=False).Vh[:2].T
        self.facts["between"] = self._between() if "lfm" in self.settings.methods else {}

    def measured(self, alignment: Alignment) -> bool:
        """Whether an alignment was measured on these images, with these references and settings."""
        missing = {"refit": False}  # what files from before it was a choice do not say
        facts = alignment.facts | {"settings": missing | alignment.facts.get("settings", {})}
        return all(facts.get(name) == self.facts[name] for name in COMPARABLE)

    def align(
        self,
        layers: Mapping[str, Tensor],
        *,
        step: int = 0,
        epoch: int = 0,
        previous: Alignment | None = None,
    ) -> Alignment:
        """Features of the probe set, (N, F) by layer, beside every reference, and beside the `previous` checkpoint's.

        Raises RowMismatchError for another number of rows; NonFiniteError for NaN.
        """
        values: dict[str, dict[str, dict[str, Facts]]] = {}
        universe: dict[str, Facts] = {}
        arrays: dict[str, Tensor] = {}
        bases: dict[str, Any] = {}
        intervals: dict[str, dict[str, Interval]] = {}
        for layer, rows_NF in layers.items():
            if len(rows_NF) != len(self.probe):
                raise RowMismatchError(
                    f"expected {len(self.probe)} rows of {layer}, got {len(rows_NF)}: embed the probe set"
                )
            rows_NF = rows_NF.detach().cpu().float()
            basis, smooth = self._smooth(rows_NF)
            found, bases[layer] = tensors_of(basis)
            arrays |= {f"{layer}/basis/{name}": tensor for name, tensor in found.items()}
            values[layer] = {}
            leading_NK = self._leading(rows_NF)
            space = FoldSpace.of(rows_NF, leading_NK, smooth, self.folds)
            intervals[layer] = {}
            for name in self.features:
                values[layer][name] = self._measures(rows_NF, leading_NK, name)
                if "lfm" in self.settings.methods:
                    values[layer][name] |= self._functional(basis, self.bases[name], f"{layer}/{name}", arrays)
                for measure, facts in values[layer][name].items():
                    intervals[layer][f"{name}/{measure}"] = _interval(
                        facts, getattr(space, measure)(self.spaces[name]), measure
                    )
            if previous is not None and layer in previous.values:
                drift = self._similarity(basis, previous.basis(layer))
                values[layer]["previous"] = {"lfm": _facts(drift.panel["weighted_overlap"])}
            if self.universe is not None:
                universe[layer], ranked, places = self._newcomer(self.universe, leading_NK)
                intervals[layer] |= ranked
                arrays[f"{layer}/places"] = places.pop(NEWCOMER)
                for name, places_H2 in places.items():
                    arrays.setdefault(f"places/{name}", places_H2)  # as the first layer's universe has them
        if self.universe is not None:
            arrays["places_rows"] = self.held_rows
        return Alignment(values, universe, arrays, step, epoch, self.facts | {"bases": bases}, intervals)

    def _measures(self, rows_NF: Tensor, leading_NK: Tensor, reference: str) -> dict[str, Facts]:
        measured: dict[str, Facts] = {}
        for name in self.settings.measures:
            generator = torch.Generator().manual_seed(self.settings.seed)  # the same permutations for all
            whole, leading = (rows_NF, self.features[reference]), (leading_NK, self.leading[reference])
            found = MEASURES[name](
                *(leading if name == "procrustes" else whole), null=self.settings.n_permutations, generator=generator
            )
            measured[name] = _facts(found)
        return measured

    def _functional(
        self, basis: Eigenbasis, reference: Eigenbasis, place: str, arrays: dict[str, Tensor]
    ) -> dict[str, Facts]:
        found = self._similarity(basis, reference)
        arrays[f"{place}/functional_map"] = found.functional_map.float()
        arrays[f"{place}/distortion"] = found.distortion_x.float()
        return {"lfm": _facts(found.panel["weighted_overlap"])}

    def _similarity(self, basis: Eigenbasis, other: Eigenbasis) -> Any:
        s = self.settings
        return lfm_similarity(
            basis, other, n_eigenvectors=s.n_eigenvectors, n_permutations=s.n_permutations, random_state=s.seed
        )

    def _between(self) -> dict[str, dict[str, float]]:
        m, names = self.settings.n_eigenvectors, list(self.bases)
        found: dict[str, dict[str, float]] = {name: {name: 1.0} for name in names}
        for a, b in itertools.combinations(names, 2):
            found[a][b] = found[b][a] = basis_overlap(self.bases[a], self.bases[b], m)
        return found

    def places(self, rows_HK: Tensor) -> Tensor:
        """Rows of the universe on its two leading axes."""
        return (rows_HK @ self.axes_K2).float()

    def _newcomer(self, universe: GCPA, leading_NK: Tensor) -> tuple[Facts, dict[str, Interval], dict[str, Tensor]]:
        """The checkpoint in the universe: its map from one half of the rows, its numbers on the other, and places of all."""
        grown = copy.copy(universe)
        certificate = grown.add(
            NEWCOMER, leading_NK[self.fit_rows], permutations=self.settings.n_permutations, doubt_above=1.0
        )  # p is among the facts
        placed, turn_KK = self.placed, torch.eye(self.axes_K2.shape[0]).to(self.axes_K2)
        if self.settings.refit:
            grown.refit()
            placed = self._placed(grown)
            before, after = (torch.cat(list(one.values())) for one in (self.placed, placed))
            turn_KK = polar_factor(after.T @ before)  # a new universe has axes of its own
        held = grown.transform(leading_NK[self.held_rows], source=NEWCOMER)
        hits = {}
        for name, theirs in placed.items():
            for direction, (queries, gallery) in {"to": (held, theirs), "from": (theirs, held)}.items():
                hits[f"rank1_{direction}_{name}"] = pair_ranks(queries, gallery).first_rank_Q == 1
        hits_NR = torch.stack(list(hits.values()), dim=1).double()
        held_folds = [torch.isin(self.held_rows, rows).nonzero()[:, 0] for rows in self.folds]
        values = _rank1(hits_NR.mean(dim=0), list(hits))
        by_fold = [_rank1(share_R, list(hits)) for share_R in means_without(hits_NR, held_folds)]
        intervals = {
            f"universe/{name}": jackknife_interval(value, torch.tensor([one[name] for one in by_fold]))
            for name, value in values.items()
        }
        facts: Facts = {"agreement": certificate.agreement, "p": certificate.p_value}
        places = {name: self.places(rows_HK @ turn_KK) for name, rows_HK in (placed | {NEWCOMER: held}).items()}
        return facts | values, intervals, places

    def _placed(self, universe: GCPA) -> dict[str, Tensor]:
        """The references' held-out rows in a universe."""
        return {
            name: universe.transform(rows_NK[self.held_rows], source=name) for name, rows_NK in self.leading.items()
        }

    def _leading(self, rows_NF: Tensor) -> Tensor:
        """Principal components; axes from the half of the rows that the universe is fitted on."""
        fitted = rows_NF[self.fit_rows]
        n_components = min(self.settings.n_components, *fitted.shape)
        return principal_components(fitted, rows_NF, n_components=n_components)[1]

    def _smooth(self, rows_NF: Tensor) -> tuple[Eigenbasis, Smooth]:
        """The eigenbasis of the rows' graph, and its functions without each fold."""
        graph = similarity_graph(rows_NF, n_neighbors=self.settings.n_neighbors)
        basis = similarity_basis(graph, n_eigenvectors=self.settings.n_eigenvectors)
        wanted = "lfm" in self.settings.methods
        return basis, functions_without(graph, basis, self.folds) if wanted else ([], [])

    def _prepared(self, reference: Reference, cache: Path | None) -> tuple[Tensor, Eigenbasis, Smooth]:
        s = self.settings
        named = json.dumps(
            [reference.key(), self.fingerprint, s.n_eigenvectors, s.n_neighbors, s.seed, "lfm" in s.methods]
        )
        path = None if cache is None else cache / f"{hashlib.sha256(named.encode()).hexdigest()[:24]}.safetensors"
        if path is not None and path.is_file():
            tensors, facts = read_kind(path, REFERENCE)
            folds = range(len(self.folds) if "lfm" in s.methods else 0)
            smooth = [[tensors[f"{kind}/{fold}"] for fold in folds] for kind in ("functions", "weights")]
            return tensors["features"], basis_of(tensors, facts), (smooth[0], smooth[1])
        rows_NF = reference.features(self.probe).embeddings_NF
        basis, (functions, weights) = self._smooth(rows_NF)
        if path is not None:
            tensors, facts = tensors_of(basis)
            tensors |= {f"functions/{fold}": one for fold, one in enumerate(functions)}
            tensors |= {f"weights/{fold}": one for fold, one in enumerate(weights)}
            try:
                write_kind(path, REFERENCE, tensors | {"features": rows_NF}, facts)
            except CheckpointError as error:
                warnings.warn(
                    f"{error}; the reference will be prepared again next time", AlignmentWarning, stacklevel=2
                )
        return rows_NF, basis, (functions, weights)


def embed_layers(model: NeuralEigenmapModel, images_NCHW: Tensor, layers: Sequence[Layer]) -> dict[str, Tensor]:
    """Features of images by layer, without augmentation, in one pass, on the CPU."""
    device = model.pixel_mean.device
    parts: dict[str, list[Tensor]] = {layer: [] for layer in layers}
    with evaluation_mode(model):
        for images_BCHW in images_NCHW.split(CHUNK):
            outputs = model(images_BCHW.to(device))
            for layer in layers:
                parts[layer].append((outputs.features if layer == "backbone" else outputs.codes).float().cpu())
    return {layer: torch.cat(rows) for layer, rows in parts.items()}


def _plain(settings: AlignmentSettings) -> dict[str, Any]:
    """As JSON gives it back, so that what was written can be compared with what will be."""
    plain: dict[str, Any] = json.loads(json.dumps(asdict(settings)))
    return plain


def _facts(found: Similarity) -> Facts:
    return {name: float(value) for name, value in found._asdict().items() if value is not None}


def _interval(facts: Facts, without_G: Tensor, measure: str) -> Interval:
    """Around the calibrated value. without_G: of the measure itself, but for lfm, whose headline is calibrated already."""
    if measure != "lfm":
        room = (0.0 if measure == "procrustes" else 1.0) - facts["null_mean"]
        without_G = (without_G - facts["null_mean"]) / (room or math.inf)
    return jackknife_interval(facts["calibrated"], without_G)


def _rank1(share_R: Tensor, names: Sequence[str]) -> Facts:
    """Of every pair, over all, and of the worst one."""
    return dict(zip(names, share_R.tolist(), strict=True)) | {
        "rank1": float(share_R.mean()),
        "worst_rank1": float(share_R.min()),
    }
