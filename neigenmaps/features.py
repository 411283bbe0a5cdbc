"""FeatureSet: the embeddings of known rows, and proof of which rows they are.

The likeliest wrong result of a comparison between models is one where row i of one set is not row i of the other. A
FeatureSet therefore carries a fingerprint of its rows (`fingerprint_rows` of the images, in order), and
`check_same_rows` refuses to go on when two fingerprints differ.

The file is safetensors, so that reading one from a stranger runs no code. A digest over the tensors is kept beside
them: a damaged file is refused instead of being analysed.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from neigenmaps.errors import CheckpointError, InputError, NonFiniteError, RowMismatchError, ShapeError
from neigenmaps.files import whole_file

FORMAT = "neigenmaps.features/1"


@dataclass(frozen=True, eq=False)
class FeatureSet:
    """Embeddings (N, F) of N rows; `eigenvalues_K`, when known, says how much each column carries.

    Labels are integers, -1 for unlabelled. `provenance` is free text: checkpoint, commit, data set, ...

    Raises:
        ShapeError: embeddings that are not a matrix, or labels that do not match them.
        NonFiniteError: NaN or infinity in embeddings or eigenvalues.
        InputError: an empty fingerprint, labels that are not integers, or provenance that is not text.
    """

    embeddings_NF: Tensor
    row_fingerprint: str
    labels_N: Tensor | None = None
    eigenvalues_K: Tensor | None = None
    provenance: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.embeddings_NF.ndim != 2 or self.embeddings_NF.numel() == 0:
            shape = tuple(self.embeddings_NF.shape)
            raise ShapeError(f"expected non-empty embeddings (N, F), got {shape}: flatten all axes but the first")
        if not self.row_fingerprint:
            raise InputError("expected a row fingerprint, got '': make one with fingerprint_rows(images)")
        _check_finite("embeddings", self.embeddings_NF)
        if self.labels_N is not None:
            _check_labels(self.labels_N, len(self.embeddings_NF))
        if self.eigenvalues_K is not None:
            _check_eigenvalues(self.eigenvalues_K)
        if not all(isinstance(text, str) for item in self.provenance.items() for text in item):
            raise InputError(f"expected provenance from str to str, got {self.provenance!r}: convert the values")

    def __len__(self) -> int:
        return len(self.embeddings_NF)

    def save(self, path: str | Path) -> None:
        """Write the set to `path`, whole or not at all; an existing file is replaced."""
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self._tensors().items()}
        metadata = {
            "format": FORMAT,
            "row_fingerprint": self.row_fingerprint,
            "provenance": json.dumps(self.provenance, sort_keys=True),
            "digest": _digest(tensors),
        }
        with whole_file(path) as unfinished:
            save_file(tensors, unfinished, metadata=metadata)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what `save` wrote, onto the CPU.

        Raises CheckpointError when the file is missing, damaged, of another kind, or holds NaN.
        """
        make, again = "write one with FeatureSet.save", "embed again"
        metadata, tensors = read_tensors(Path(path), "a feature file", make=make, again=again)
        if metadata.get("format") != FORMAT:
            raise CheckpointError(f"expected format {FORMAT!r} in {path}, got {metadata.get('format')!r}: {again}")
        try:
            if _digest(tensors) != metadata["digest"]:
                raise CheckpointError(f"{path} is damaged: its tensors differ from those that were saved; embed again")
            return cls(**tensors, row_fingerprint=metadata["row_fingerprint"], provenance=_provenance(metadata))
        except KeyError as error:
            raise CheckpointError(f"{path} has no {error}: embed again with this version") from error
        except (InputError, TypeError) as error:  # TypeError: tensors missing, or tensors that do not belong here
            raise CheckpointError(f"{path} does not hold a feature set: {error}") from error

    def _tensors(self) -> dict[str, Tensor]:
        candidates = {
            "embeddings_NF": self.embeddings_NF,
            "labels_N": self.labels_N,
            "eigenvalues_K": self.eigenvalues_K,
        }
        return {name: tensor for name, tensor in candidates.items() if tensor is not None}


def check_same_rows(a: FeatureSet, b: FeatureSet) -> None:
    """Raise RowMismatchError unless both sets embed the same rows in the same order."""
    if a.row_fingerprint == b.row_fingerprint and len(a) == len(b):
        return
    raise RowMismatchError(
        f"expected two sets over the same rows, got {len(a)} rows {a.row_fingerprint[:12]!r} (from {a.provenance}) and "
        f"{len(b)} rows {b.row_fingerprint[:12]!r} (from {b.provenance}): embed the same images, in the same order"
    )


def fingerprint_rows(rows: Tensor) -> str:
    """SHA-256 over dtype, shape and content of the input rows, such as uint8 images (N, C, H, W). Order counts."""
    return _digest({"rows": rows.detach().cpu().contiguous()})


def read_tensors(path: Path, what: str, *, make: str, again: str) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors of a safetensors file. what, make, again: for errors, what it is and how one comes by it.

    Raises CheckpointError when the file is missing or cut short.
    """
    if not path.is_file():
        raise CheckpointError(f"expected {what} at {path}, found no file: {make}")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  safe_open is no mapping
            return file.metadata() or {}, tensors
    except SafetensorError as error:
        raise CheckpointError(f"{path} cannot be read as safetensors ({error}): {again}") from error


def _provenance(metadata: dict[str, str]) -> dict[str, str]:
    try:
        provenance = json.loads(metadata["provenance"])
    except json.JSONDecodeError as error:
        raise InputError(f"provenance is not JSON ({error})") from error
    if not isinstance(provenance, dict):
        raise InputError(f"expected provenance from str to str, got {provenance!r}")
    return provenance


def _digest(tensors: dict[str, Tensor]) -> str:
    sha = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        sha.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def _check_finite(name: str, values: Tensor) -> None:
    if not torch.isfinite(values).all():
        raise NonFiniteError(f"expected finite {name}, got NaN or infinity: look at the encoder that made them")


def _check_labels(labels_N: Tensor, n_rows: int) -> None:
    if labels_N.shape != (n_rows,):
        raise ShapeError(f"expected labels ({n_rows},), got {tuple(labels_N.shape)}: give every row one label")
    if labels_N.dtype.is_floating_point or labels_N.dtype == torch.bool:
        raise InputError(f"expected integer labels, got {labels_N.dtype}: convert them with .long()")


def _check_eigenvalues(eigenvalues_K: Tensor) -> None:
    if eigenvalues_K.ndim != 1:
        raise ShapeError(f"expected eigenvalues (K,), got {tuple(eigenvalues_K.shape)}: pass them as one row")
    _check_finite("eigenvalues", eigenvalues_K)
