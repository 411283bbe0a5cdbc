"""What queries retrieved, as one self-contained HTML page: thumbnails by code length, no script, no network."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from torch import Tensor

from neigenmaps.errors import InputError, ShapeError
from neigenmaps.files import whole_file
from neigenmaps.reporting.report import image_uri

STYLE = """
.query { display: flex; gap: 1rem; align-items: center; margin: 2.2rem 0 .6rem; padding-top: 1.4rem;
  border-top: 1px solid var(--rule); }
.query img { width: 96px; height: 96px; }
.query h2 { margin: 0; overflow-wrap: anywhere; }
.row { display: grid; grid-template-columns: 6.2rem minmax(0, 1fr); gap: .6rem; align-items: start; margin: .5rem 0; }
.row h3 { font-size: .86rem; font-weight: 600; margin: .3rem 0 0; color: var(--soft); }
.hits { display: flex; gap: .5rem; overflow-x: auto; padding-bottom: .4rem; margin: 0; list-style: none; padding-left: 0; }
.hits li { width: 84px; flex: none; font-size: .74rem; line-height: 1.25; }
img, .absent { object-fit: cover; border-radius: 4px; background: var(--panel); display: block; image-rendering: auto; }
img.small { image-rendering: pixelated; }
.hits img, .absent { width: 84px; height: 84px; }
.absent { display: grid; place-items: center; color: var(--soft); }
.score { font-variant-numeric: tabular-nums; font-weight: 600; }
.name { color: var(--soft); display: block; overflow: hidden; text-overflow: ellipsis; white-space: nowrap;
  direction: rtl; text-align: left; }
@media (max-width: 560px) { .row { grid-template-columns: minmax(0, 1fr); gap: .1rem; } }
"""
SMALL = 48  # pixels: below, enlarged as squares rather than blurred


@dataclass(frozen=True)
class Hit:
    """image: uint8 (1 or 3, H, W); None where it can no longer be read."""

    name: str
    score: float
    image: Tensor | None


@dataclass(frozen=True)
class HitRow:
    """What one code length retrieves, best first."""

    label: str
    hits: Sequence[Hit]


@dataclass(frozen=True)
class QueryResult:
    name: str
    image: Tensor
    rows: Sequence[HitRow]


def write_retrieval_page(path: str | Path, title: str, lead: str, results: Sequence[QueryResult]) -> None:
    """Write the page, whole or not at all. InputError without queries or hits; ShapeError for what is no uint8 image."""
    if not results or not all(result.rows and all(row.hits for row in result.rows) for result in results):
        raise InputError("expected queries with at least one hit each, got none: there is nothing to show")
    style = (files("neigenmaps.reporting") / "page" / "report.css").read_text() + STYLE
    parts = [part for result in results for part in _query(result)]
    text = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>{html.escape(title)}</title>
<style>
{style}
</style>
</head>
<body>
<h1>{html.escape(title)}</h1>
<p class="lead">{html.escape(lead)}</p>
<main>
{chr(10).join(parts)}
</main>
</body>
</html>
"""
    with whole_file(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def _query(result: QueryResult) -> Iterator[str]:
    yield f'<section><div class="query">{_image(result.image, "the query")}<h2>{html.escape(result.name)}</h2></div>'
    for row in result.rows:
        yield f'<div class="row"><h3>{html.escape(row.label)}</h3><ol class="hits">'
        for place, hit in enumerate(row.hits, start=1):
            name = html.escape(hit.name)
            shown = '<div class="absent">no image</div>' if hit.image is None else _image(hit.image, name, escaped=True)
            # the last part of a path tells most, so names are cut at the left; the mark keeps "/" in its place there
            caption = f'<span class="score">{hit.score:.3f}</span><span class="name" title="{name}">&lrm;{name}</span>'
            yield f'<li value="{place}">{shown}{caption}</li>'
        yield "</ol></div>"
    yield "</section>"


def _image(image_CHW: Tensor, text: str, *, escaped: bool = False) -> str:
    if image_CHW.ndim != 3:
        raise ShapeError(f"expected a uint8 image (1 or 3, H, W), got {tuple(image_CHW.shape)}")
    kind = ' class="small"' if image_CHW.shape[-1] < SMALL else ""
    return f'<img{kind} src="{image_uri(image_CHW)}" alt="{text if escaped else html.escape(text)}">'
