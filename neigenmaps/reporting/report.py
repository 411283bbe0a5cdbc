"""One self-contained HTML page out of blocks: charts that answer the pointer, tables, strips of images.

    write_report(path, "Run 3", "what ran", [Section("Training", [Lines("loss", "epoch", [Series("ours", x, y)])])])

Blocks are plain data; `page/report.js` draws them, and everything lies in the one file: no network, no library.
"""

from __future__ import annotations

import base64
import html
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor

from neigenmaps.errors import InputError, ShapeError
from neigenmaps.files import whole_file

Number = float | int | None


@dataclass(frozen=True)
class Series:
    """A curve; with low and high, a band. level: a thin line all along, such as where it started from.

    colour: number of a colour that several series share.
    """

    name: str
    x: Sequence[Number]
    y: Sequence[Number]
    low: Sequence[Number] | None = None
    high: Sequence[Number] | None = None
    dashed: bool = False
    colour: int | None = None
    level: float | None = None

    def __post_init__(self) -> None:
        given = [len(values) for values in (self.y, self.low, self.high) if values is not None]
        if any(n != len(self.x) for n in given):
            raise ShapeError(f"series {self.name!r}: expected {len(self.x)} values as in x, got {given}")


@dataclass(frozen=True)
class Lines:
    kind: ClassVar[str] = "lines"
    title: str
    x_label: str
    series: Sequence[Series]
    note: str = ""
    log2: bool = False


@dataclass(frozen=True)
class Panel:
    """Matrices of one shape, (frames, rows, columns), red above zero and blue below; the largest magnitude is full colour."""

    name: str
    values_TRC: Tensor

    def as_dict(self) -> dict[str, Any]:
        if self.values_TRC.ndim != 3 or self.values_TRC.numel() == 0:
            raise ShapeError(
                f"panel {self.name!r}: expected (frames, rows, columns), got {tuple(self.values_TRC.shape)}"
            )
        limit = float(self.values_TRC.abs().max()) or 1.0
        bytes_TRC = (self.values_TRC.double() / limit * 127 + 128).round().clamp(1, 255).to(torch.uint8).cpu()
        rows, columns = self.values_TRC.shape[1:]
        coded = [_coded(frame) for frame in bytes_TRC]
        return {"name": self.name, "rows": rows, "columns": columns, "limit": limit, "frames": coded}


@dataclass(frozen=True)
class Frames:
    """Panels under one slider; labels: what every position of the slider is called."""

    kind: ClassVar[str] = "frames"
    title: str
    labels: Sequence[str]
    panels: Sequence[Panel]
    note: str = ""


@dataclass(frozen=True)
class Places:
    """Points in a plane, a panel for each name, all on one scale, under one slider: panels (frames, points, 2).

    A panel of one frame stays as it is. classes: of the points, -1 for unlabelled; class_names: by class.
    """

    kind: ClassVar[str] = "places"
    title: str
    labels: Sequence[str]
    panels: Mapping[str, Tensor]
    classes: Sequence[int]
    class_names: Sequence[str]
    note: str = ""

    def as_dict(self) -> dict[str, Any]:
        for name, at_TP2 in self.panels.items():
            if (
                at_TP2.ndim != 3
                or at_TP2.shape[1:] != (len(self.classes), 2)
                or len(at_TP2) not in (1, len(self.labels))
            ):
                raise ShapeError(
                    f"panel {name!r}: expected (1 or {len(self.labels)}, {len(self.classes)}, 2), got {tuple(at_TP2.shape)}"
                )
        if not self.panels:
            raise InputError(f"{self.title!r}: expected at least one panel of points, got none")
        limit = max(float(at_TP2.abs().max()) for at_TP2 in self.panels.values()) or 1.0
        return {
            "panels": [
                {"name": name, "frames": [_coded((frame_P2.double() / limit + 1) * 127.5) for frame_P2 in at_TP2]}
                for name, at_TP2 in self.panels.items()
            ]
        }


@dataclass(frozen=True)
class Tree:
    """Which are nearest: rows (node, node, distance, leaves) as scipy's linkage gives them, over named leaves."""

    kind: ClassVar[str] = "tree"
    title: str
    names: Sequence[str]
    merges: Sequence[Sequence[float]]
    order: Sequence[int]
    note: str = ""

    def __post_init__(self) -> None:
        if len(self.merges) != len(self.names) - 1 or sorted(self.order) != list(range(len(self.names))):
            raise ShapeError(
                f"tree {self.title!r}: expected {len(self.names) - 1} merges and an order of {len(self.names)} leaves, got "
                f"{len(self.merges)} and {len(self.order)}"
            )


@dataclass(frozen=True)
class Matrix:
    """Numbers in coloured cells, full colour at `high`, none at `low`; None leaves a cell blank."""

    kind: ClassVar[str] = "matrix"
    title: str
    rows: Sequence[str]
    columns: Sequence[str]
    values: Sequence[Sequence[Number]]
    note: str = ""
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Table:
    kind: ClassVar[str] = "table"
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str | Number]]
    note: str = ""


@dataclass(frozen=True)
class StripRow:
    """What was retrieved, best first; right: whether it is of the query's class."""

    label: str
    images: Sequence[Tensor]
    right: Sequence[bool]


@dataclass(frozen=True)
class Strips:
    """Queries, each with rows of retrieved images, (C, H, W) uint8."""

    kind: ClassVar[str] = "strips"
    title: str
    queries: Sequence[tuple[Tensor, Sequence[StripRow]]]
    note: str = ""


@dataclass(frozen=True)
class Entries:
    kind: ClassVar[str] = "entries"
    title: str
    entries: Mapping[str, Any]
    note: str = ""


Block = Lines | Frames | Places | Tree | Matrix | Table | Strips | Entries


@dataclass(frozen=True)
class Section:
    title: str
    blocks: Sequence[Block]
    note: str = field(default="")


def write_report(path: str | Path, title: str, lead: str, sections: Sequence[Section]) -> None:
    """Write the page, whole or not at all. Sections without blocks are left out; InputError when none is left."""
    shown = [section for section in sections if section.blocks]
    if not shown:
        raise InputError("expected a section with at least one block, got none: there is nothing to report")
    data = json.dumps({"sections": [_section(section) for section in shown]}, allow_nan=False, separators=(",", ":"))
    page = files("neigenmaps.reporting") / "page"
    text = (page / "report.html").read_text()
    parts = {
        "title": html.escape(title),
        "lead": html.escape(lead),
        "style": (page / "report.css").read_text(),
        "data": data.replace("<", "\\u003c"),  # no text of a user's can end the script element
        "script": (page / "report.js").read_text(),
    }
    # in one pass, so that what a user wrote is never taken for a mark
    text = re.sub(r"\{\{(\w+)\}\}", lambda mark: parts[mark[1]], text)
    with whole_file(path) as unfinished:
        unfinished.write_text(text)


def _section(section: Section) -> dict[str, Any]:
    return {"title": section.title, "note": section.note, "blocks": [_block(block) for block in section.blocks]}


def _block(block: Block) -> dict[str, Any]:
    named = {name: value for name, value in vars(block).items() if value is not None}
    if isinstance(block, Lines):
        named["series"] = [
            {name: value for name, value in vars(one).items() if value is not None} for one in block.series
        ]
    elif isinstance(block, Frames):
        if wrong := [panel.name for panel in block.panels if len(panel.values_TRC) != len(block.labels)]:
            raise ShapeError(f"{block.title!r}: expected a frame for each of {len(block.labels)} labels in {wrong}")
        named["panels"] = [panel.as_dict() for panel in block.panels]
    elif isinstance(block, Places):
        named |= block.as_dict()
    elif isinstance(block, Strips):
        named["queries"] = [
            {
                "image": image_uri(query),
                "rows": [
                    {"label": row.label, "images": [image_uri(image) for image in row.images], "right": list(row.right)}
                    for row in rows
                ],
            }
            for query, rows in block.queries
        ]
    elif isinstance(block, Entries):
        named["entries"] = {str(name): str(value) for name, value in block.entries.items()}
    plain = _plain(named)
    assert isinstance(plain, dict)
    return {"kind": block.kind, **plain}


def _coded(values: Tensor) -> str:
    """Whole numbers from 0 to 255, as base64."""
    return base64.b64encode(values.round().clamp(0, 255).to(torch.uint8).cpu().contiguous().numpy().tobytes()).decode()


def _plain(value: Any) -> Any:
    """Lists and numbers that JSON knows: what is not finite becomes null."""
    if isinstance(value, Mapping):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def image_uri(image_CHW: Tensor) -> str:
    """A uint8 image, (1, H, W) or (3, H, W), as a PNG inside a data URI."""
    if image_CHW.ndim != 3 or image_CHW.shape[0] not in (1, 3) or image_CHW.dtype != torch.uint8:
        raise ShapeError(f"expected a uint8 image (1 or 3, H, W), got {image_CHW.dtype} {tuple(image_CHW.shape)}")
    pixels = image_CHW.cpu().permute(1, 2, 0).squeeze(-1).contiguous().numpy()
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
