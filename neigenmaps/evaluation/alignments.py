"""What an alignment found, and its file: numbers by layer, reference and measure, maps, bases, places."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from neigenmaps.alignment import lfm_similarity
from neigenmaps.alignment.storage import read_state, write_state
from neigenmaps.errors import CheckpointError
from neigenmaps.spectral import Eigenbasis

Facts = dict[str, float]  # value, null_mean, null_std, z, p, calibrated
Interval = tuple[float, float]  # low, high
ALIGNMENT = "Alignment"  # kind of file
_BASIS = ("eigenvalues_K", "eigenvectors_NK", "degrees_N", "mass_N", "residuals_K")
_BASIS_FACTS = ("orthogonality_error", "groups", "next_gap", "ends_at_a_gap", "normalization")


@dataclass(frozen=True, eq=False)
class Alignment:
    """values: by layer, reference and measure. universe: by layer, what the universe says. arrays: maps, bases and places.

    facts: what was measured on and with: `probe` (fingerprint), `references` (their keys), `settings`; and `between`, the
    calibrated overlap of the references with each other. intervals: by layer and headline, (low, high) of 95 %: see
    `neigenmaps.evaluation.fold_intervals`.
    """

    values: dict[str, dict[str, dict[str, Facts]]]
    universe: dict[str, Facts]
    arrays: dict[str, Tensor]
    step: int = 0
    epoch: int = 0
    facts: dict[str, Any] = field(default_factory=dict)
    intervals: dict[str, dict[str, Interval]] = field(default_factory=dict)

    def headlines(self) -> dict[str, float]:
        """What is logged: `<reference>/<measure>` of the first layer, `.../<layer>` of further ones; calibrated."""
        flat: dict[str, float] = {}
        for layer, references in self.values.items():
            end = self._end(layer)
            for reference, measures in references.items():
                flat |= {f"{reference}/{name}{end}": facts["calibrated"] for name, facts in measures.items()}
            flat |= {f"universe/{name}{end}": value for name, value in self.universe.get(layer, {}).items()}
        return flat

    def bounds(self) -> dict[str, Interval]:
        """(low, high) of those headlines that have an interval."""
        return {
            name + self._end(layer): both for layer, named in self.intervals.items() for name, both in named.items()
        }

    def _end(self, layer: str) -> str:
        return "" if layer == next(iter(self.values)) else f"/{layer}"

    def summary(self) -> str:
        """One line: the first measure of the first layer with every reference."""
        layer, references = next(iter(self.values.items()))
        measures = next(iter(references.values()))
        measure = "lfm" if "lfm" in measures else next(iter(measures))
        shown = [f"{name} {facts[measure]['calibrated']:.2f}" for name, facts in references.items() if measure in facts]
        return f"step {self.step}, {layer} aligned ({measure}): " + ", ".join(shown)

    def basis(self, layer: str) -> Eigenbasis:
        """The eigenbasis of a layer's graph, as it was measured with."""
        return basis_of({name: self.arrays[f"{layer}/basis/{name}"] for name in _BASIS}, self.facts["bases"][layer])

    def likeness(self, other: Alignment, layer: str) -> float:
        """Calibrated overlap of the smooth functions of this checkpoint and another one's."""
        return basis_overlap(self.basis(layer), other.basis(layer), self.facts["settings"]["n_eigenvectors"])


def write_alignment(alignment: Alignment, folder: str | Path) -> Path:
    """Write `step=<step>.safetensors`, whole or not at all: arrays, and all numbers in the header.

    CheckpointError where it cannot be written, such as on a full disk.
    """
    path = alignment_path(folder, alignment.step)
    named = {name: getattr(alignment, name) for name in ("values", "universe", "step", "epoch", "facts", "intervals")}
    write_kind(path, ALIGNMENT, alignment.arrays, named)
    return path


def read_alignment(path: str | Path) -> Alignment:
    """What `write_alignment` wrote. CheckpointError when the file is damaged or of another kind."""
    tensors, named = read_kind(Path(path), ALIGNMENT)
    try:
        alignment = Alignment(arrays=tensors, **named)
    except TypeError as error:
        raise CheckpointError(f"{path} does not hold an alignment: {error}") from error
    pairs = {
        layer: {name: (low, high) for name, (low, high) in one.items()} for layer, one in alignment.intervals.items()
    }
    return replace(alignment, intervals=pairs)  # JSON knows no tuples


def read_alignments(folder: str | Path) -> list[Alignment]:
    """All alignments of a folder, by step."""
    return sorted((read_alignment(path) for path in Path(folder).glob("step=*.safetensors")), key=lambda one: one.step)


def alignment_path(folder: str | Path, step: int) -> Path:
    return Path(folder) / f"step={step:08d}.safetensors"


def tensors_of(basis: Eigenbasis) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What files hold of a basis: tensors, and facts for the header."""
    tensors = {name: getattr(basis, name).contiguous() for name in _BASIS}
    return tensors, {name: getattr(basis, name) for name in _BASIS_FACTS}


def basis_of(tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> Eigenbasis:
    """The way back from `tensors_of`."""
    named: dict[str, Any] = {name: tensors[name] for name in _BASIS} | dict(facts)
    return Eigenbasis(**named | {"groups": tuple((int(start), int(stop)) for start, stop in facts["groups"])})


def basis_overlap(basis: Eigenbasis, other: Eigenbasis, n_eigenvectors: int) -> float:
    """Calibrated overlap of the smooth functions of two bases."""
    return lfm_similarity(basis, other, n_eigenvectors=n_eigenvectors, n_permutations=0).score


def write_kind(path: Path, kind: str, tensors: dict[str, Tensor], header: dict[str, Any]) -> None:
    """`write_state`, whose errors say that nothing is lost."""
    try:
        write_state(path, kind, tensors, header)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{path} could not be written ({error}): make room; what was measured before is intact"
        ) from error


def read_kind(path: Path, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """`read_state`, whose errors say that a file can be made anew."""
    try:
        return read_state(path, kind)
    except CheckpointError as error:
        raise CheckpointError(f"{error}; or delete it and measure again") from error
