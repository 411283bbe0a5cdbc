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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors import SafetensorError
from torch import Tensor

from neigenmaps.alignment import GCPA, lfm_similarity, similarity_basis
from neigenmaps.alignment.storage import read_state, write_state
from neigenmaps.data import ImageStore
from neigenmaps.errors import CheckpointError, InputError, RowMismatchError, UnknownNameError
from neigenmaps.evaluation.baselines import principal_components
from neigenmaps.evaluation.references import Reference
from neigenmaps.features import fingerprint_rows
from neigenmaps.functional.pair_ranking import pair_ranks
from neigenmaps.functional.similarity import Similarity, linear_cka, mutual_knn, procrustes_distance
from neigenmaps.nn import NeuralEigenmapModel
from neigenmaps.nn.encoders import evaluation_mode
from neigenmaps.spectral import Eigenbasis

Layer = Literal["backbone", "projector"]
Method = Literal["lfm", "gcpa"]
Measure = Literal["unbiased_cka", "mutual_knn", "procrustes"]
Facts = dict[str, float]  # value, null_mean, null_std, z, p, calibrated

MEASURES: Mapping[str, Callable[..., Similarity]] = {
    "unbiased_cka": lambda a, b, **null: linear_cka(a, b, unbiased=True, **null),
    "mutual_knn": mutual_knn,
    "procrustes": procrustes_distance,
}
LEAST_ROWS = 40
CHUNK = 512  # images of one pass
COMPARABLE = ("probe", "references", "settings")  # facts that must agree in one curve
ALIGNMENT, REFERENCE = "Alignment", "Reference"  # kinds of file


@dataclass(frozen=True)
class AlignmentSettings:
    """What is measured. n_permutations: of every null. n_neighbors: of the graphs; None as in `lfm_similarity`.

    n_components: leading principal components that Procrustes and the universe see of every space: their cost is cubic in
    it, and what lies beyond is mostly noise.
    """

    methods: Sequence[Method] = ("lfm", "gcpa")
    measures: Sequence[Measure] = ("unbiased_cka", "mutual_knn", "procrustes")
    n_eigenvectors: int = 30
    n_neighbors: int | None = None
    n_permutations: int = 49
    n_components: int = 64
    seed: int = 0

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


@dataclass(frozen=True, eq=False)
class Alignment:
    """values: by layer, reference and measure. universe: by layer, what the universe says. arrays: maps, bases and places.

    facts: what was measured on and with: `probe` (fingerprint), `references` (their keys), `settings`; and `between`, the
    calibrated overlap of the references with each other.
    """

    values: dict[str, dict[str, dict[str, Facts]]]
    universe: dict[str, Facts]
    arrays: dict[str, Tensor]
    step: int = 0
    epoch: int = 0
    facts: dict[str, Any] = field(default_factory=dict)

    def headlines(self) -> dict[str, float]:
        """What is logged: `<reference>/<measure>` of the first layer, `.../<layer>` of further ones; calibrated."""
        flat: dict[str, float] = {}
        for number, (layer, references) in enumerate(self.values.items()):
            end = "" if number == 0 else f"/{layer}"
            for reference, measures in references.items():
                flat |= {f"{reference}/{name}{end}": facts["calibrated"] for name, facts in measures.items()}
            flat |= {f"universe/{name}{end}": value for name, value in self.universe.get(layer, {}).items()}
        return flat

    def summary(self) -> str:
        """One line: the first measure of the first layer with every reference."""
        layer, references = next(iter(self.values.items()))
        measures = next(iter(references.values()))
        measure = "lfm" if "lfm" in measures else next(iter(measures))
        shown = [f"{name} {facts[measure]['calibrated']:.2f}" for name, facts in references.items() if measure in facts]
        return f"step {self.step}, {layer} aligned ({measure}): " + ", ".join(shown)

    def basis(self, layer: str) -> Eigenbasis:
        """The eigenbasis of a layer's graph, as it was measured with."""
        return _basis_of({name: self.arrays[f"{layer}/basis/{name}"] for name in _BASIS}, self.facts["bases"][layer])

    def likeness(self, other: Alignment, layer: str) -> float:
        """Calibrated overlap of the smooth functions of this checkpoint and another one's."""
        return _overlap(self.basis(layer), other.basis(layer), self.facts["settings"]["n_eigenvectors"])


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
        self.features: dict[str, Tensor] = {}
        self.bases: dict[str, Eigenbasis] = {}
        for name, reference in references.items():
            self.features[name], self.bases[name] = self._prepared(reference, None if cache is None else Path(cache))
        self.facts: dict[str, Any] = {
            "probe": self.fingerprint,
            "references": {name: reference.key() for name, reference in references.items()},
            "settings": _plain(self.settings),
        }
        order_N = torch.randperm(len(probe), generator=torch.Generator().manual_seed(self.settings.seed))
        self.fit_rows, self.held_rows = order_N[: len(probe) // 2], order_N[len(probe) // 2 :]
        self.leading = {name: self._leading(rows_NF) for name, rows_NF in self.features.items()}
        self.universe: GCPA | None = None
        if "gcpa" in self.settings.methods and len(references) >= 2:
            known = {name: rows_NK[self.fit_rows] for name, rows_NK in self.leading.items()}
            self.universe = GCPA(random_state=self.settings.seed).fit(known)
            self.placed = {  # a newcomer changes no map
                name: self.universe.transform(rows_NK[self.held_rows], source=name)
                for name, rows_NK in self.leading.items()
            }
            middle_HK = torch.stack(list(self.placed.values())).mean(dim=0)
            # two axes that no checkpoint changes, so that its rows can be followed through training
            self.axes_K2 = torch.linalg.svd(middle_HK - middle_HK.mean(dim=0), full_matrices=False).Vh[:2].T
        self.facts["between"] = self._between() if "lfm" in self.settings.methods else {}

    def measured(self, alignment: Alignment) -> bool:
        """Whether an alignment was measured on these images, with these references and settings."""
        return all(alignment.facts.get(name) == self.facts[name] for name in COMPARABLE)

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
        for layer, rows_NF in layers.items():
            if len(rows_NF) != len(self.probe):
                raise RowMismatchError(
                    f"expected {len(self.probe)} rows of {layer}, got {len(rows_NF)}: embed the probe set"
                )
            rows_NF = rows_NF.detach().cpu().float()
            basis = self._basis(rows_NF)
            found, bases[layer] = _tensors_of(basis)
            arrays |= {f"{layer}/basis/{name}": tensor for name, tensor in found.items()}
            values[layer] = {}
            leading_NK = self._leading(rows_NF)
            for name in self.features:
                values[layer][name] = self._measures(rows_NF, leading_NK, name)
                if "lfm" in self.settings.methods:
                    values[layer][name] |= self._functional(basis, self.bases[name], f"{layer}/{name}", arrays)
            if previous is not None and layer in previous.values:
                drift = self._similarity(basis, previous.basis(layer))
                values[layer]["previous"] = {"lfm": _facts(drift.panel["weighted_overlap"])}
            if self.universe is not None:
                universe[layer], arrays[f"{layer}/places"] = self._newcomer(self.universe, leading_NK)
        if self.universe is not None:
            arrays |= {f"places/{name}": self.places(rows_HK) for name, rows_HK in self.placed.items()}
            arrays["places_rows"] = self.held_rows
        return Alignment(values, universe, arrays, step, epoch, self.facts | {"bases": bases})

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
            found[a][b] = found[b][a] = _overlap(self.bases[a], self.bases[b], m)
        return found

    def places(self, rows_HK: Tensor) -> Tensor:
        """Rows of the universe on its two leading axes."""
        return (rows_HK @ self.axes_K2).float()

    def _newcomer(self, universe: GCPA, leading_NK: Tensor) -> tuple[Facts, Tensor]:
        """The checkpoint in the universe: its map from one half of the rows, its numbers and places on the other."""
        grown = copy.copy(universe)
        certificate = grown.add(
            "checkpoint", leading_NK[self.fit_rows], permutations=self.settings.n_permutations, doubt_above=1.0
        )  # p is among the facts
        held = grown.transform(leading_NK[self.held_rows], source="checkpoint")
        facts: Facts = {"agreement": certificate.agreement, "p": certificate.p_value}
        both = []
        for name, theirs in self.placed.items():
            for direction, (queries, gallery) in {"to": (held, theirs), "from": (theirs, held)}.items():
                rank1 = float((pair_ranks(queries, gallery).first_rank_Q == 1).double().mean())
                facts[f"rank1_{direction}_{name}"] = rank1
                both.append(rank1)
        return facts | {"rank1": sum(both) / len(both), "worst_rank1": min(both)}, self.places(held)

    def _leading(self, rows_NF: Tensor) -> Tensor:
        """Principal components; axes from the half of the rows that the universe is fitted on."""
        fitted = rows_NF[self.fit_rows]
        n_components = min(self.settings.n_components, *fitted.shape)
        return principal_components(fitted, rows_NF, n_components=n_components)[1]

    def _basis(self, rows_NF: Tensor) -> Eigenbasis:
        return similarity_basis(
            rows_NF, n_eigenvectors=self.settings.n_eigenvectors, n_neighbors=self.settings.n_neighbors
        )

    def _prepared(self, reference: Reference, cache: Path | None) -> tuple[Tensor, Eigenbasis]:
        s = self.settings
        named = json.dumps([reference.key(), self.fingerprint, s.n_eigenvectors, s.n_neighbors])
        path = None if cache is None else cache / f"{hashlib.sha256(named.encode()).hexdigest()[:24]}.safetensors"
        if path is not None and path.is_file():
            tensors, facts = _read(path, REFERENCE)
            return tensors["features"], _basis_of(tensors, facts)
        rows_NF = reference.features(self.probe).embeddings_NF
        basis = self._basis(rows_NF)
        if path is not None:
            tensors, facts = _tensors_of(basis)
            write_state(path, REFERENCE, tensors | {"features": rows_NF}, facts)
        return rows_NF, basis


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


def write_alignment(alignment: Alignment, folder: str | Path) -> Path:
    """Write `step=<step>.safetensors`, whole or not at all: arrays, and all numbers in the header.

    CheckpointError where it cannot be written, such as on a full disk.
    """
    path = alignment_path(folder, alignment.step)
    named = {name: getattr(alignment, name) for name in ("values", "universe", "step", "epoch", "facts")}
    try:
        write_state(path, ALIGNMENT, alignment.arrays, named)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{path} could not be written ({error}): make room; what was measured before is intact"
        ) from error
    return path


def read_alignment(path: str | Path) -> Alignment:
    """What `write_alignment` wrote. CheckpointError when the file is damaged or of another kind."""
    tensors, named = _read(Path(path), ALIGNMENT)
    try:
        return Alignment(arrays=tensors, **named)
    except TypeError as error:
        raise CheckpointError(f"{path} does not hold an alignment: {error}") from error


def read_alignments(folder: str | Path) -> list[Alignment]:
    """All alignments of a folder, by step."""
    return sorted((read_alignment(path) for path in Path(folder).glob("step=*.safetensors")), key=lambda one: one.step)


def alignment_path(folder: str | Path, step: int) -> Path:
    return Path(folder) / f"step={step:08d}.safetensors"


_BASIS = ("eigenvalues_K", "eigenvectors_NK", "degrees_N", "mass_N", "residuals_K")
_BASIS_FACTS = ("orthogonality_error", "groups", "next_gap", "ends_at_a_gap", "normalization")


def _tensors_of(basis: Eigenbasis) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors = {name: getattr(basis, name).contiguous() for name in _BASIS}
    return tensors, {name: getattr(basis, name) for name in _BASIS_FACTS}


def _basis_of(tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> Eigenbasis:
    named: dict[str, Any] = {name: tensors[name] for name in _BASIS} | dict(facts)
    return Eigenbasis(**named | {"groups": tuple((int(start), int(stop)) for start, stop in facts["groups"])})


def _overlap(basis: Eigenbasis, other: Eigenbasis, n_eigenvectors: int) -> float:
    return lfm_similarity(basis, other, n_eigenvectors=n_eigenvectors, n_permutations=0).score


def _plain(settings: AlignmentSettings) -> dict[str, Any]:
    """As JSON gives it back, so that what was written can be compared with what will be."""
    plain: dict[str, Any] = json.loads(json.dumps(asdict(settings)))
    return plain


def _facts(found: Similarity) -> Facts:
    return {name: float(value) for name, value in found._asdict().items() if value is not None}


def _read(path: Path, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        return read_state(path, kind)
    except CheckpointError as error:
        raise CheckpointError(f"{error}; or delete it and measure again") from error
