"""The page of retrieved images: everything in one file, texts stay texts, nothing shown without something to show."""

import re
from pathlib import Path

import pytest
import torch
from browser import BROWSER, shown

from neigenmaps.errors import InputError, ShapeError
from neigenmaps.reporting.retrieval_page import Hit, HitRow, QueryResult, write_retrieval_page

IMAGE = torch.arange(192, dtype=torch.uint8).view(3, 8, 8)
HOSTILE = '</style><script>alert(1)</script>&".png'


def results(n_hits: int = 30) -> list[QueryResult]:
    hits = [Hit(f"{number}/{HOSTILE}", 1 - number / 100, IMAGE if number else None) for number in range(n_hits)]
    return [QueryResult(HOSTILE, IMAGE, [HitRow("8 numbers", hits), HitRow("64 numbers", hits[:1])])]


def test_one_file_with_every_image_and_no_script(tmp_path: Path) -> None:
    write_retrieval_page(tmp_path / "p.html", HOSTILE, HOSTILE, results())
    text = (tmp_path / "p.html").read_text()
    assert text.count('src="data:image/png;base64,') == 1 + 29
    assert text.count("no image") == 2
    assert not re.search("<script|https?://", text)
    assert re.findall(r'class="score">(.*?)<', text)[:3] == ["1.000", "0.990", "0.980"]


def test_what_cannot_be_shown_is_refused(tmp_path: Path) -> None:
    for nothing in ([], [QueryResult("q", IMAGE, [])], results(0)):
        with pytest.raises(InputError, match="nothing to show"):
            write_retrieval_page(tmp_path / "p.html", "t", "", nothing)
    with pytest.raises(ShapeError, match="uint8 image"):
        write_retrieval_page(tmp_path / "p.html", "t", "", [QueryResult("q", IMAGE[0], results()[0].rows)])
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="needs Chromium")
@pytest.mark.parametrize("width", [390, 1200])
def test_a_browser_lays_it_out_within_the_window(tmp_path: Path, width: int) -> None:
    write_retrieval_page(tmp_path / "p.html", "title", "lead", results())
    assert shown((tmp_path / "p.html").read_text(), width, tmp_path)["wide"] == "false"
