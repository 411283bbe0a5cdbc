"""Codes of a whole data set, in blocks: what was encoded survives a kill, and several processes can share the work.

Rows are cut into blocks. A process takes the blocks of its shard, one file each, written whole or not at all; blocks that are
there already are not encoded again. Whoever finds all blocks complete joins them into one `CodeStore` and removes them. While
work is under way the blocks lie in `<out>.parts/`, in a folder of this list of images, beside a description of the job.

Where images have come, gone or changed since, the list is another one: codes of those that stayed are copied, from `out` or
from blocks of the earlier list, and only the rest is encoded.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from neigenmaps.data import ImageRows
from neigenmaps.data.unreadable import Allowed, check_unreadable
from neigenmaps.errors import CheckpointError, DataError, InputError
from neigenmaps.files import whole_file
from neigenmaps.freed_memory import freed_memory_kept
from neigenmaps.nn import NeuralEigenmapModel
from neigenmaps.retrieval.store import CodeStore, fingerprint_model
from neigenmaps.types import Scaling


class EmbedReport(NamedTuple):
    """n_encoded: images encoded by this call. skipped: names that can't be read, of all blocks that are there.

    n_missing: blocks that other shards still have to make; at 0 the store lies at `path`. n_kept: codes that this call took
    over from before. n_gone: codes of before whose images are no longer there, or have changed.
    """

    path: Path
    n_encoded: int
    skipped: tuple[str, ...]
    n_missing: int
    n_kept: int = 0
    n_gone: int = 0


def embed_images(
    model: NeuralEigenmapModel,
    images: ImageRows,
    out: str | Path,
    *,
    dims: int | None = None,
    scaling: Scaling = "sqrt_eigenvalue",
    shard: tuple[int, int] = (0, 1),
    block: int = 1024,
    max_unreadable_share: float = 0.01,
    notes: dict[str, str] | None = None,
    on_block: Callable[[int], None] = lambda n_images: None,
) -> EmbedReport:
    """Write a `CodeStore` of `model.encode(images, dims)` to `out`; ids are the images' names.

    dims: the first so many numbers, all of them when None. shard: (i, n), every n-th block from i. block: images in memory
    at a time, and how much a kill can lose; smaller where shards would go without. Files that can't be read are left out, and
    stop the work when they are more than `max_unreadable_share` of all. notes: kept in the store. on_block: called with the
    number of images of each block done.

    Codes that are there already, of the same model and length, are kept where the image is as it was.

    Raises:
        InputError: a shard outside 0 <= i < n, a block below 1, or `out` holding codes of another model or length, or only of
            images that are not among these.
        DataError: too many unreadable files; what was encoded stays. CheckpointError: what lies at `out` is damaged.
        NotFittedError: the model's functions have no order yet.
    """
    index, n_shards = shard
    if not 0 <= index < n_shards or block < 1 or not 0 <= max_unreadable_share <= 1:
        raise InputError(
            "expected a shard i/n with 0 <= i < n, a block of at least 1 and a share within 0..1, got "
            f"{index}/{n_shards}, {block} and {max_unreadable_share}"
        )
    block = min(block, max(1, -(-len(images) // n_shards)))  # else few images would all fall to the first shards
    job = _Job(model, images, Path(out), dims, scaling, block, notes or {})
    if job.is_finished():
        return job.report()
    job.claim()
    allowed = Allowed(max_unreadable_share, len(images))
    starts = range(0, len(images), block)
    n_encoded, n_kept, skipped = 0, 0, list(job.skipped())
    with freed_memory_kept(model.pixel_mean.device):
        for number in range(len(starts))[index::n_shards]:
            rows = range(starts[number], min(starts[number] + block, len(images)))
            if not job.has(number):
                encoded, kept, unread = job.encode(number, rows)
                n_encoded, n_kept = n_encoded + encoded, n_kept + kept
                skipped += unread
            on_block(len(rows))
            check_unreadable(images.source, skipped, allowed)
    n_missing = sum(not job.has(number) for number in range(len(starts)))
    if n_missing:
        return EmbedReport(job.out, n_encoded, job.skipped(), n_missing, n_kept, job.earlier.n_gone)
    if not job.is_finished():
        job.join(len(starts), allowed)
    return job.report(n_encoded, n_kept)


class _Job:
    def __init__(
        self,
        model: NeuralEigenmapModel,
        images: ImageRows,
        out: Path,
        dims: int | None,
        scaling: Scaling,
        block: int,
        notes: dict[str, str],
    ) -> None:
        self.model, self.images, self.out, self.scaling = model, images, out, scaling
        available = model.available_dims()
        self.dims = available if dims is None else dims
        if not 1 <= self.dims <= available:  # before a folder is made
            raise InputError(f"expected dims between 1 and {available}, the model's functions, got {dims}")
        self.fingerprint = fingerprint_model(model)
        self.recipe = _digest(self.fingerprint, self.dims, scaling)
        self.digest = _digest(self.recipe, images.fingerprint, len(images))
        self.notes = {**notes, "recipe": self.recipe, "job": self.digest, "scaling": scaling, "images": images.source}
        self.parts = out.with_name(f"{out.name}.parts")
        self.folder = self.parts / f"{self.digest[:16]}-{block}"
        self.earlier, self.earlier_folders = _EarlierCodes(self.dims), list[Path]()

    def is_finished(self) -> bool:
        """Whether codes of these images lie at `out`; InputError when they are of another model or length."""
        if not self.out.exists():
            return False
        notes = CodeStore.load(self.out, verify=False).notes
        if notes.get("recipe") != self.recipe:
            raise InputError(
                f"{self.out} holds codes of another job (another model, length or scaling): choose another --out, or delete it"
            )
        return notes["job"] == self.digest

    def claim(self) -> None:
        """Find what earlier lists of images left, and say what the blocks are of; InputError when that does not fit."""
        described = sorted(self.parts.glob("*/job.json"))
        for description in described:
            if json.loads(description.read_text()).get("recipe") != self.recipe:
                raise InputError(
                    f"{self.parts} holds blocks of another job (another model, length or scaling): "
                    "finish that one, delete the folder, or choose another --out"
                )
        if self.out.exists():
            self.earlier.add(self.out, CodeStore.load(self.out), self.images)
        self.earlier_folders = [path.parent for path in described if path.parent != self.folder]
        for folder in self.earlier_folders:
            stores = []
            for path in sorted(folder.glob("*.safetensors")):
                with contextlib.suppress(CheckpointError):  # damaged, or joined and removed meanwhile: encoded anew
                    stores.append(CodeStore.load(path))
            if stores:
                self.earlier.add(folder, CodeStore.joined(stores), self.images)
        description = self.folder / "job.json"
        if not description.exists():
            with whole_file(description) as path:
                path.write_text(json.dumps(self.notes, indent=2) + "\n")

    def has(self, number: int) -> bool:
        return self._listing(number).exists()

    def encode(self, number: int, rows: range) -> tuple[int, int, list[str]]:
        """Write one block: how many were encoded, how many were there before, and the names of what can't be read."""
        names, origins_B = self.images.names[rows.start : rows.stop], self.images.origins_N[rows.start : rows.stop]
        codes_BK, there_B = self.earlier.find(origins_B)
        n_kept, wanted = int(there_B.sum()), np.flatnonzero(~there_B).tolist()
        read = zip(wanted, self.images.read([rows[i] for i in wanted]), strict=True)
        found = {i: image for i, image in read if image is not None}
        if found:
            encoded = self.model.encode(torch.stack([*found.values()]), self.dims, scaling=self.scaling)
            codes_BK[[*found]] = encoded.cpu().float().numpy()
            there_B[[*found]] = True
        if there_B.any():
            CodeStore(
                codes_BK[there_B],
                ids=[name for name, there in zip(names, there_B, strict=True) if there],
                eigenvalues=self.model.eigenvalues[: self.dims],
                fingerprint=self.fingerprint,
                notes=self.notes,
                origins=origins_B[there_B],
            ).save(self._codes(number))
        skipped = [name for name, there in zip(names, there_B, strict=True) if not there]
        with whole_file(self._listing(number)) as path:  # last: a block is complete when this file is there
            path.write_text(json.dumps({"n_codes": int(there_B.sum()), "skipped": skipped}) + "\n")
        return len(found), n_kept, skipped

    def skipped(self) -> tuple[str, ...]:
        listings = sorted(self.folder.glob("[0-9]*.json"))
        return tuple(name for listing in listings for name in json.loads(listing.read_text())["skipped"])

    def join(self, n_blocks: int, allowed: Allowed) -> None:
        try:
            skipped = self.skipped()
            check_unreadable(self.images.source, skipped, allowed)
            counts = [json.loads(self._listing(number).read_text())["n_codes"] for number in range(n_blocks)]
            if not any(counts):
                raise DataError(f"{self.images.source}: none of {len(self.images)} images can be read")
            stores = [self._opened(number) for number, count in enumerate(counts) if count]
            whole = CodeStore.joined(stores)
            whole.notes["skipped"] = json.dumps(skipped)
            whole.save(self.out)
        except (FileNotFoundError, CheckpointError):
            if not self.is_finished():  # else another process has joined the blocks meanwhile
                raise
        for folder in (self.folder, *self.earlier_folders):
            shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):  # another list's blocks, begun meanwhile
            self.parts.rmdir()

    def report(self, n_encoded: int = 0, n_kept: int = 0) -> EmbedReport:
        notes = CodeStore.load(self.out, verify=False).notes
        return EmbedReport(self.out, n_encoded, tuple(json.loads(notes["skipped"])), 0, n_kept, self.earlier.n_gone)

    def _opened(self, number: int) -> CodeStore:
        try:
            return CodeStore.load(self._codes(number))
        except CheckpointError as error:
            self._listing(number).unlink(missing_ok=True)  # so that the next call makes it anew
            raise CheckpointError(f"{error}. That block will be encoded anew: run the command again") from error

    def _codes(self, number: int) -> Path:
        return self.folder / f"{number:06d}.safetensors"

    def _listing(self, number: int) -> Path:
        return self.folder / f"{number:06d}.json"


class _EarlierCodes:
    """Codes of images that are as they were, by origin."""

    def __init__(self, width: int) -> None:
        self.width, self._gone = width, set[int]()
        self._sources: list[tuple[CodeStore, NDArray[np.int64], NDArray[np.int64]]] = []

    def add(self, place: Path, store: CodeStore, images: ImageRows) -> None:
        """InputError where none of the images is left: then it is the codes of something else that would be lost."""
        there_N = np.isin(store.origins_N, images.origins_N)
        if not there_N.any():
            raise InputError(
                f"{place} holds codes of {len(store)} images, and none of them is in {images.source} as it was: choose "
                "another --out, or delete it"
            )
        self._gone.update(store.origins_N[~there_N].tolist())
        rows = np.flatnonzero(there_N)
        rows = rows[np.argsort(store.origins_N[rows])]
        self._sources.append((store, store.origins_N[rows], rows))

    @property
    def n_gone(self) -> int:
        return len(self._gone)

    def find(self, origins_B: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Codes (B, K), and which of them are there."""
        codes_BK = np.zeros((len(origins_B), self.width), dtype=np.float32)
        there_B = np.zeros(len(origins_B), dtype=bool)
        for store, known_N, rows in self._sources:
            place_B = np.searchsorted(known_N, origins_B).clip(max=len(known_N) - 1)
            here_B = known_N[place_B] == origins_B
            codes_BK[here_B] = store.gather(rows[place_B[here_B]], self.width)
            there_B |= here_B
        return codes_BK, there_B


def _digest(*facts: str | int) -> str:
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()
