"""Codes of a whole data set, in blocks: what was encoded survives a kill, and several processes can share the work.

Rows are cut into blocks. A process takes the blocks of its shard, one file each, written whole or not at all; blocks that are
there already are not encoded again. Whoever finds all blocks complete joins them into one `CodeStore` and removes them. While
work is under way the blocks lie in `<out>.parts/`, beside a description of the job that every later process must match.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from neigenmaps.data import ImageRows
from neigenmaps.errors import CheckpointError, DataError, InputError
from neigenmaps.files import whole_file
from neigenmaps.nn import NeuralEigenmapModel
from neigenmaps.retrieval.store import CodeStore, fingerprint_model
from neigenmaps.types import Scaling

NAMES_IN_MESSAGE = 3


class EmbedReport(NamedTuple):
    """n_encoded: images encoded by this call. skipped: names that can't be read, of all blocks that are there.

    n_missing: blocks that other shards still have to make; at 0 the store lies at `path`.
    """

    path: Path
    n_encoded: int
    skipped: tuple[str, ...]
    n_missing: int


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
    at a time, and how much a kill can lose. Files that can't be read are left out, and stop the work when they are more than
    `max_unreadable_share` of all. notes: kept in the store. on_block: called with the number of images of each block done.

    Raises:
        InputError: a shard outside 0 <= i < n, a block below 1, or `out` holding codes of another job.
        DataError: too many unreadable files; what was encoded stays. CheckpointError: what lies at `out` is damaged.
        NotFittedError: the model's functions have no order yet.
    """
    index, n_shards = shard
    if not 0 <= index < n_shards or block < 1 or not 0 <= max_unreadable_share <= 1:
        raise InputError(
            "expected a shard i/n with 0 <= i < n, a block of at least 1 and a share within 0..1, got "
            f"{index}/{n_shards}, {block} and {max_unreadable_share}"
        )
    job = _Job(model, images, Path(out), dims, scaling, block, notes or {})
    if job.out.exists():
        return _finished(job)
    job.claim()
    starts = range(0, len(images), block)
    n_encoded, skipped = 0, list(job.skipped())
    for number in range(len(starts))[index::n_shards]:
        rows = range(starts[number], min(starts[number] + block, len(images)))
        if not job.has(number):
            unread = job.encode(number, rows)
            n_encoded += len(rows) - len(unread)
            skipped += unread
        on_block(len(rows))
        _judge(skipped, len(images), max_unreadable_share)
    n_missing = sum(not job.has(number) for number in range(len(starts)))
    if n_missing:
        return EmbedReport(job.out, n_encoded, job.skipped(), n_missing)
    return _finished(job, n_encoded) if job.out.exists() else job.join(len(starts), n_encoded, max_unreadable_share)


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
        facts = [self.fingerprint, images.fingerprint, len(images), self.dims, scaling, block]
        self.digest = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
        self.notes = {**notes, "job": self.digest, "scaling": scaling, "images": images.source}
        self.parts = out.with_name(f"{out.name}.parts")

    def claim(self) -> None:
        """Say what the blocks are of, or InputError when they are of something else."""
        description = self.parts / "job.json"
        if description.exists():
            if json.loads(description.read_text()).get("job") != self.digest:
                raise InputError(
                    f"{self.parts} holds blocks of another job (another model, other images, another length or block size): "
                    "finish that one, delete the folder, or choose another --out"
                )
            return
        with whole_file(description) as path:
            path.write_text(json.dumps(self.notes, indent=2) + "\n")

    def has(self, number: int) -> bool:
        return self._listing(number).exists()

    def encode(self, number: int, rows: range) -> list[str]:
        """Write one block; the names of what can't be read."""
        found = self.images.read(rows)
        names = [self.images.names[row] for row in rows]
        readable = [image for image in found if image is not None]
        if readable:
            codes = self.model.encode(torch.stack(readable), self.dims, scaling=self.scaling).cpu()
            ids = [name for name, image in zip(names, found, strict=True) if image is not None]
            store = CodeStore(
                codes,
                ids=ids,
                eigenvalues=self.model.eigenvalues[: self.dims],
                fingerprint=self.fingerprint,
                notes=self.notes,
            )
            store.save(self._codes(number))
        skipped = [name for name, image in zip(names, found, strict=True) if image is None]
        with whole_file(self._listing(number)) as path:  # last: a block is complete when this file is there
            path.write_text(json.dumps({"n_codes": len(readable), "skipped": skipped}) + "\n")
        return skipped

    def skipped(self) -> tuple[str, ...]:
        listings = sorted(self.parts.glob("[0-9]*.json"))
        return tuple(name for listing in listings for name in json.loads(listing.read_text())["skipped"])

    def join(self, n_blocks: int, n_encoded: int, max_unreadable_share: float) -> EmbedReport:
        try:
            skipped = self.skipped()
            _judge(skipped, len(self.images), max_unreadable_share)
            counts = [json.loads(self._listing(number).read_text())["n_codes"] for number in range(n_blocks)]
            if not any(counts):
                raise DataError(f"{self.images.source}: none of {len(self.images)} images can be read")
            stores = [self._opened(number) for number, count in enumerate(counts) if count]
            whole = CodeStore.joined(stores)
            whole.notes["skipped"] = json.dumps(skipped)
            whole.save(self.out)
        except (FileNotFoundError, CheckpointError):
            if not self.out.exists():  # else another process has joined the blocks meanwhile
                raise
            return _finished(self, n_encoded)
        shutil.rmtree(self.parts, ignore_errors=True)
        return EmbedReport(self.out, n_encoded, skipped, 0)

    def _opened(self, number: int) -> CodeStore:
        try:
            return CodeStore.load(self._codes(number))
        except CheckpointError as error:
            self._listing(number).unlink(missing_ok=True)  # so that the next call makes it anew
            raise CheckpointError(f"{error}. That block will be encoded anew: run the command again") from error

    def _codes(self, number: int) -> Path:
        return self.parts / f"{number:06d}.safetensors"

    def _listing(self, number: int) -> Path:
        return self.parts / f"{number:06d}.json"


def _finished(job: _Job, n_encoded: int = 0) -> EmbedReport:
    notes = CodeStore.load(job.out, verify=False).notes
    if notes.get("job") != job.digest:
        raise InputError(
            f"{job.out} holds codes of another job (another model, other images, another length): choose another --out, or "
            "delete it"
        )
    return EmbedReport(job.out, n_encoded, tuple(json.loads(notes.get("skipped", "[]"))), 0)


def _judge(skipped: Sequence[str], n_images: int, max_share: float) -> None:
    if len(skipped) > max_share * n_images:
        shown = ", ".join(skipped[:NAMES_IN_MESSAGE]) + (", ..." if len(skipped) > NAMES_IN_MESSAGE else "")
        raise DataError(
            f"{len(skipped)} of {n_images} files can't be read as images: {shown}. Repair or delete them, or raise "
            f"max_unreadable_share (now {max_share}); what was encoded is kept"
        )
