"""`neigenmaps embed` and `retrieve`: from images to codes to the nearest images, by every kind of checkpoint, and every mistake."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from neigenmaps.__main__ import main
from neigenmaps.functional.rayleigh_ritz import RitzResult
from neigenmaps.nn import NeuralEigenmapModel
from neigenmaps.retrieval import CodeStore

CLASS = "9 \N{LATIN SMALL LETTER E WITH ACUTE} <b>"  # a name that a careless page would break on


def save_model(folder: Path, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    model = NeuralEigenmapModel(width=12, hidden=16)
    rotation = torch.linalg.qr(torch.randn(12, 12))[0]
    model.set_ritz(RitzResult(torch.linspace(0.9, 0.2, 12), rotation, torch.zeros(12), 12))
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """model/, images/ in two classes, codes.safetensors of them, and a text file that pretends to be an image."""
    place = tmp_path_factory.mktemp("retrieval")
    save_model(place / "model")
    for number, image in enumerate(load_digits().images[:24]):
        path = place / "images" / ("0" if number < 12 else CLASS) / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image * 15).astype(np.uint8)).save(path)
    (place / "no_image.png").write_text("text")
    main(embed_line(place, place / "codes.safetensors", "--dims=10"))
    return place


def embed_line(place: Path, out: Path, *options: str) -> list[str]:
    return ["embed", str(place / "model"), str(place / "images"), "--out", str(out), *options]


def refused(*arguments: object) -> str:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    assert isinstance(ended.value.code, str)
    assert ended.value.code.startswith("error: ")
    return ended.value.code


def test_every_kind_of_checkpoint_gives_the_same_codes(
    finished: Path, few_digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stores = []
    for number, checkpoint in enumerate((finished, finished / "model", finished / "last.ckpt")):
        out = tmp_path / str(number)
        main(["embed", str(checkpoint), str(few_digits), "--out", str(out)])
        stores.append(CodeStore.load(out))
    assert "100 codes (100 encoded now)" in capsys.readouterr().out
    torn = tmp_path / "torn.ckpt"
    torn.write_bytes((finished / "last.ckpt").read_bytes()[:5000])
    assert "which cannot be read" in refused("embed", torn, few_digits, "--out", tmp_path / "3")
    for store in stores[1:]:
        assert store.fingerprint == stores[0].fingerprint
        np.testing.assert_array_equal(store.prefix(store.width), stores[0].prefix(store.width))


def test_the_folder_of_runs_names_its_newest(tmp_path: Path) -> None:
    for age, name in enumerate(("new", "older", "oldest")):
        save_model(tmp_path / "runs" / name / "model")
        os.utime(tmp_path / "runs" / name, (1e9 - age, 1e9 - age))
    (tmp_path / "runs" / "no run").mkdir()
    message = refused("embed", tmp_path / "runs", "digits", "--out", tmp_path / "c")
    assert message.endswith(f"did you mean {tmp_path / 'runs' / 'new'}?")


@pytest.mark.parametrize("shard", ["2/2", "0/0"])
def test_a_shard_is_one_of_those_there_are(place: Path, tmp_path: Path, shard: str) -> None:
    assert "0 <= i < n" in refused(*embed_line(place, tmp_path / "c"), f"--shard={shard}")


def test_few_images_are_shared_all_the_same(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(3):
        main(embed_line(place, tmp_path / "c", "--dims=10", f"--shard={number}/3"))
        assert ("24 codes (8 encoded now)" if number == 2 else "Encoded 8 images") in capsys.readouterr().out


def test_shards_say_what_is_missing(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = embed_line(place, tmp_path / "c", "--block=10", "--dims=10")
    main([*line, "--shard=1/2"])
    assert "other shards still have 2 blocks" in capsys.readouterr().out
    main([*line, "--shard=0/2"])
    assert "24 codes (14 encoded now)" in capsys.readouterr().out
    a, b = CodeStore.load(tmp_path / "c"), CodeStore.load(place / "codes.safetensors")
    np.testing.assert_allclose(a.prefix(10), b.prefix(10), atol=1e-6)
    assert "--shard i/n" in refused(*line[:-2], "--shard=1")


def test_a_removed_photo_starts_nothing_over(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(place / "images", tmp_path / "images")
    shutil.copy(place / "codes.safetensors", tmp_path / "c")
    (tmp_path / "images" / "0" / "03.png").unlink()
    main(["embed", str(place / "model"), str(tmp_path / "images"), "--out", str(tmp_path / "c"), "--dims=10"])
    expected = "23 codes (0 encoded now, 23 kept from before, 1 dropped as their images are gone or have changed)"
    assert expected in capsys.readouterr().out


def test_an_image_of_the_gallery_finds_itself(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    query = place / "images" / CLASS / "17.png"
    main(["retrieve", str(place / "codes.safetensors"), "--query", str(query), "-k", "3", "--dims", "8"])
    printed = capsys.readouterr().out
    assert "by 8 numbers" in printed
    first = next(line for line in printed.splitlines() if re.match(r"\s+1 ", line))
    assert first.strip().split(maxsplit=2)[1:] == ["1.0000", f"{CLASS}/17.png"]


def test_the_page_shows_every_length_and_asks_the_network_for_nothing(place: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(place / "images", moved)
    (moved / "0" / "03.png").unlink()
    page, query = tmp_path / "page.html", place / "images" / "0" / "03.png"
    line = [
        "retrieve",
        place / "codes.safetensors",
        "--query",
        query,
        query,
        "-k",
        24,
        "--images",
        moved,
        "--html",
        page,
    ]
    main([str(part) for part in line])
    text = page.read_text()
    assert re.findall(r"<h3>(.*?)</h3>", text) == ["8 numbers", "10 numbers"] * 2
    assert text.count('src="data:image/png') == 2 + 4 * 23
    assert text.count("no image") == 4  # the deleted one, at every length
    assert "<b>" not in text
    assert not re.search(r"https?://|<script", text)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--query": "no_image.png"}, r"no_image.png: expected an image file, but it cannot be read"),
        ({"--query": "absent.png"}, "there is no such file"),
        ({"-k": 25}, "1 <= k <= 24"),
        ({"--diffusion": -1}, "a diffusion of at least 0"),
        ({"--dims": 11}, "1 <= truncate_dim <= 10"),
        ({"--model": "other"}, "encode both with one model"),
        ({"--model": "absent"}, "expected a run folder, a model/ folder, or a .ckpt file"),
        ({"--model": "images"}, "neither model/ nor last.ckpt"),
        ({"--model": "no_image.png"}, "expected a run folder"),
        ({"--images": "absent/", "--html": "p.html"}, "Say with --images"),
        ({"--device": "abacus"}, "try --device cpu"),
        ({"codes": "no_image.png"}, "no safetensors file"),
        ({"codes": "cut.safetensors"}, "cut short"),
        ({"codes": "bare.safetensors"}, "do not say their model: give --model"),
    ],
)
def test_mistakes_are_answered(place: Path, monkeypatch: pytest.MonkeyPatch, change: dict, message: str) -> None:  # type: ignore[type-arg]
    monkeypatch.chdir(place)
    if not Path("other").exists():
        save_model(Path("other"), seed=1)
        Path("cut.safetensors").write_bytes(Path("codes.safetensors").read_bytes()[:-100])
        CodeStore(np.eye(10)).save("bare.safetensors")
    given = {"codes": "codes.safetensors", "--query": "images/0/01.png"} | change
    options = [part for name, value in given.items() if name != "codes" for part in (name, value)]
    assert re.search(message, refused("retrieve", given["codes"], *options))
    assert not Path("p.html").exists()


def test_other_mistakes_of_embed(place: Path, tmp_path: Path) -> None:
    line = embed_line(place, place / "codes.safetensors")
    before = (place / "codes.safetensors").read_bytes()
    assert "holds codes of another job" in refused(*line, "--dims=3")
    assert (place / "codes.safetensors").read_bytes() == before
    assert "unknown data set 'digitz': did you mean 'digits'" in refused(*line[:2], "digitz", *line[3:])
    (tmp_path / "empty").mkdir()
    assert "found no image" in refused(*line[:2], tmp_path / "empty", *line[3:])


KILLED = """
import os, signal, sys
from neigenmaps import files
replace, left = os.replace, [int(sys.argv[1])]
def replace_and_die(source, target):
    left[0] -= 1
    if left[0] < 0: os.kill(os.getpid(), signal.SIGKILL)  # the file is written, but not in its place
    replace(source, target)
files.os.replace = replace_and_die
from neigenmaps.__main__ import main
main(sys.argv[2:])
"""


@pytest.mark.slow
def test_killed_by_signal_9_at_every_block_nothing_is_lost(place: Path, tmp_path: Path) -> None:
    line = embed_line(place, tmp_path / "c", "--block=6", "--dims=10")
    for renamed in (0, 1, 2, 2, 2, 2, 0):  # the description, four blocks of two files, the joined file
        ran = subprocess.run([sys.executable, "-c", KILLED, str(renamed), *line], capture_output=True, check=False)
        assert ran.returncode == -9, ran.stderr
        assert not (tmp_path / "c").exists()
    assert len(list(tmp_path.glob(".c.*"))) == 1  # each killed writer's file went when the next one wrote
    assert len(list((tmp_path / "c.parts").glob("*/0*.json"))) == 4
    main(line)
    a, b = CodeStore.load(tmp_path / "c"), CodeStore.load(place / "codes.safetensors")
    np.testing.assert_allclose(a.prefix(10), b.prefix(10), atol=1e-6)
    assert [path.name for path in tmp_path.iterdir()] == ["c"]
