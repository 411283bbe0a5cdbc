"""The page: what it holds, that nothing escapes from it, and, where a browser is at hand, that it draws and answers."""

import json
import re
from pathlib import Path

import pytest
import torch
from browser import BROWSER, shown

from neigenmaps.errors import InputError, ShapeError
from neigenmaps.reporting.report import (
    Entries,
    Frames,
    Lines,
    Matrix,
    Panel,
    Places,
    Section,
    Series,
    StripRow,
    Strips,
    Table,
    Tree,
    image_uri,
    write_report,
)

IMAGE = torch.arange(64, dtype=torch.uint8).view(1, 8, 8)
HOSTILE = "</script><b>{{script}}</b>"


def sections() -> list[Section]:
    lines = Lines(
        HOSTILE,
        "epoch",
        [
            Series("ours", [0, 1, 2], [0.1, float("nan"), 0.3], low=[None, 0, 0.2], high=[None, 0.3, 0.4]),
            Series("level", [0, 2], [0.5, 0.5], dashed=True, level=0.45),
        ],
    )
    maps = Frames("maps", ["epoch 0", "epoch 1"], [Panel("a", torch.stack([torch.eye(3), -torch.eye(3)]))])
    still, moving = torch.zeros(1, 3, 2), torch.stack([torch.eye(3)[:, :2], -torch.eye(3)[:, :2]])
    places = Places("places", ["epoch 0", "epoch 1"], {"still": still, HOSTILE: moving}, [0, 1, -1], ["cat", HOSTILE])
    tree = Tree("tree", ["a", HOSTILE, "c"], [[0, 2, 0.1, 2], [1, 3, 0.4, 3]], [1, 0, 2])
    matrix = Matrix("models", ["a", "b"], ["a", "b"], [[1.0, None], [0.5, 1.0]])
    table = Table("numbers", ["method", "8"], [["ours", 0.5], ["PCA", None]])
    wide = Table("wide", [str(column) for column in range(40)], [[0.5] * 40])  # scrolls in its box
    strips = Strips("neighbours", [(IMAGE, [StripRow("8 numbers", [IMAGE, IMAGE.repeat(3, 1, 1)], [True, False])])])
    return [
        Section("Curves", [lines, maps, places]),
        Section("Tables", [tree, matrix, table, wide, strips]),
        Section("left out", []),
        Section("Run", [Entries("run", {"seed": 0, "where": HOSTILE})]),
    ]


@pytest.fixture
def page(tmp_path: Path) -> Path:
    write_report(tmp_path / "report.html", HOSTILE, "lead & more", sections())
    return tmp_path / "report.html"


def data_of(page: Path) -> dict:
    found = re.search(r'<script type="application/json" id="report">(.*?)</script>', page.read_text(), re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def test_the_page_holds_everything_and_asks_the_network_for_nothing(page: Path) -> None:
    text = page.read_text()
    links = set(re.findall(r"https?://[^\"' )]+", text))
    assert links == {"http://www.w3.org/2000/svg"}  # a name, not an address
    assert [section["title"] for section in data_of(page)["sections"]] == ["Curves", "Tables", "Run"]
    assert "lead &amp; more" in text


def test_texts_of_users_stay_texts(page: Path) -> None:
    assert "<b>" not in page.read_text()
    assert page.read_text().count("</script>") == 2  # ours
    assert data_of(page)["sections"][0]["blocks"][0]["title"] == HOSTILE


def test_what_is_not_finite_is_null(page: Path) -> None:
    assert data_of(page)["sections"][0]["blocks"][0]["series"][0]["y"] == [0.1, None, 0.3]


def test_frames_are_bytes_around_128() -> None:
    import base64

    panel = Panel("a", torch.tensor([[[0.0, 2.0], [-2.0, 1.0]]])).as_dict()
    assert list(base64.b64decode(panel["frames"][0])) == [128, 255, 1, 192]
    assert panel["limit"] == 2.0


def test_places_are_bytes_on_one_scale(page: Path) -> None:
    import base64

    panels = data_of(page)["sections"][0]["blocks"][2]["panels"]
    decoded = [[list(base64.b64decode(frame)) for frame in panel["frames"]] for panel in panels]
    assert decoded[0] == [[128] * 6]
    assert decoded[1] == [[255, 128, 128, 255, 128, 128], [0, 128, 128, 0, 128, 128]]


def test_bad_blocks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ShapeError, match="3 values as in x"):
        Series("s", [1, 2, 3], [1, 2])
    with pytest.raises(ShapeError, match="frame for each of 1 labels"):
        write_report(
            tmp_path / "r.html", "t", "", [Section("s", [Frames("f", ["a"], [Panel("p", torch.zeros(2, 3, 3))])])]
        )
    with pytest.raises(ShapeError, match="rows, columns"):
        Panel("p", torch.zeros(3, 3)).as_dict()
    with pytest.raises(ShapeError, match="uint8 image"):
        image_uri(torch.zeros(1, 8, 8))
    for wrong in (torch.zeros(2, 3, 2), torch.zeros(1, 4, 2), torch.zeros(1, 3, 3)):
        with pytest.raises(ShapeError, match=r"expected \(1 or 1, 3, 2\)"):
            Places("p", ["a"], {"x": wrong}, [0, 0, 0], []).as_dict()
    with pytest.raises(InputError, match="at least one panel"):
        Places("p", ["a"], {}, [0], []).as_dict()
    with pytest.raises(ShapeError, match="1 merges and an order of 2 leaves, got 0 and 2"):
        Tree("t", ["a", "b"], [], [0, 1])
    with pytest.raises(InputError, match="nothing to report"):
        write_report(tmp_path / "r.html", "t", "", [Section("s", [])])
    assert not (tmp_path / "r.html").exists()


TOUCH = """
<script>
const slider = document.querySelector('input[type=range]'), canvas = document.querySelector('canvas');
const pixel = () => canvas.toDataURL();
const end = pixel();
slider.value = 0; slider.dispatchEvent(new Event('input'));
document.body.dataset.slid = String(end !== pixel()) + ' ' + document.querySelector('output').textContent;
const svg = document.querySelector('svg'), box = svg.getBoundingClientRect();
svg.dispatchEvent(new PointerEvent('pointermove', { clientX: box.left + box.width - 20, clientY: box.top + 20 }));
document.body.dataset.broken = svg.innerHTML.includes('NaN') || svg.querySelector('polygon').points.length !== 4;
document.body.dataset.tip = document.querySelector('.tip').textContent;
document.querySelector('.legend button').click();
document.body.dataset.curves = document.querySelectorAll('svg polyline').length;
const figure = document.querySelector('figure[data-kind=places]'), range = figure.querySelector('input');
const dot = figure.querySelectorAll('svg')[1].querySelector('circle');
const slide = (at) => { range.value = at; range.dispatchEvent(new Event('input')); return dot.getAttribute('transform'); };
document.body.dataset.moved = [slide(1), slide(0)].join(' ');
dot.dispatchEvent(new PointerEvent('pointermove', { clientX: 9, clientY: 9, bubbles: true }));
document.body.dataset.named = figure.querySelector('.tip').textContent.endsWith('class cat');
figure.querySelector('.legend button').click();
document.body.dataset.hidden = dot.style.display;
document.body.dataset.tree = ['.branch', '.leaf'].map((part) => document.querySelectorAll('svg ' + part).length);
</script>
"""


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium")
@pytest.mark.parametrize("width", [390, 1200])
def test_a_browser_draws_the_page_and_it_answers(page: Path, tmp_path: Path, width: int) -> None:
    said = shown(page.read_text().replace("</body>", TOUCH + "</body>"), width, tmp_path)
    assert said["drawn"] == "9"
    assert said["broken"] == "false"  # the band leaves out what nobody measured
    assert said["moved"] == "translate(0 127) translate(255 127)"
    assert said["named"] == "true"
    assert said["hidden"] == "none"
    assert said["tree"] == "2,3"
    assert said["slid"] == "true epoch 0"
    assert said["tip"] == "epoch 2ours: 0.3 (0.2 to 0.4)level: 0.5"
    assert said["curves"] == "1"  # the other was switched off
    assert said["wide"] == "false"
