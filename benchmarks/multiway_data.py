"""Spaces with matched rows for `multiway.py`: each view is embedded on its own, from training rows only.

A data set is `MatchedSpaces`: names -> training rows, names -> unseen rows, labels where there are any. The folder has
the parts `multiview/mfeat.npz`, `text/multi30k_task1.json.xz`, `text/sib200.json.xz`, `cifar10_models/` and
`cifar10_lossless_subset/`.
"""

from __future__ import annotations

import json
import lzma
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.model_selection import train_test_split
from torch import Tensor

TEXT_WIDTH = 200
SIB_LANGUAGES = {  # the languages and subsets of the paper's TED table, in SIB-200's names
    3: ["eng_Latn", "spa_Latn", "fra_Latn"],
    5: ["eng_Latn", "rus_Cyrl", "ita_Latn", "spa_Latn", "fra_Latn"],
    10: [
        *("eng_Latn", "arb_Arab", "heb_Hebr", "rus_Cyrl", "kor_Hang"),
        *("ita_Latn", "jpn_Jpan", "spa_Latn", "zho_Hans", "fra_Latn"),
    ],
}
LANGUAGES = ("en", "de", "fr", "cs")
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class MatchedSpaces(NamedTuple):
    """Row i of every space is the same thing; the parts share no row.

    validation: rows that neither encoders nor aligners learned from, to choose hyper-parameters on. An encoder's own
    training rows are not like any others to it: where it learned from `train`, folds of `train` choose too bold a code.
    """

    name: str
    train: dict[str, Tensor]
    validation: dict[str, Tensor] | None
    test: dict[str, Tensor]
    test_labels_N: Tensor | None


def mfeat(folder: Path, seed: int) -> MatchedSpaces:
    """Six descriptions of 2,000 handwritten digits, every feature standardised; half of each class is unseen."""
    archive = np.load(folder / "multiview" / "mfeat.npz")
    labels = archive["labels"].astype(np.int64)
    train, test = train_test_split(np.arange(len(labels)), test_size=0.5, stratify=labels, random_state=seed)
    spaces: dict[str, dict[str, Tensor]] = {"train": {}, "test": {}}
    for view in ("fou", "fac", "kar", "pix", "zer", "mor"):
        rows = archive[view].astype(np.float64)
        mean, std = rows[train].mean(axis=0), rows[train].std(axis=0)
        for part, index in (("train", train), ("test", test)):
            spaces[part][view] = torch.from_numpy((rows[index] - mean) / np.where(std > 0, std, 1))
    return MatchedSpaces("mfeat, 6 views", spaces["train"], None, spaces["test"], torch.from_numpy(labels[test]))


def multi30k(folder: Path, seed: int, n_train: int = 5000) -> MatchedSpaces:
    """Captions of the same images in four languages: the first n_train training images, and 1,000 each to choose and test."""
    captions = read_captions(folder)
    parts = {"train": n_train, "val": 1000, "test_2016_flickr": 1000}
    texts = {language: [captions[part][language][:n] for part, n in parts.items()] for language in LANGUAGES}
    embedded = {language: embed_text(text, "word", seed) for language, text in texts.items()}
    return MatchedSpaces("Multi30k, 4 languages", *_by_part(embedded), None)


def read_captions(folder: Path) -> dict[str, dict[str, list[str]]]:
    """Multi30k's by part and language."""
    with lzma.open(folder / "text" / "multi30k_task1.json.xz") as file:
        captions: dict[str, dict[str, list[str]]] = json.load(file)["task1"]
    return captions


def sib200(folder: Path, seed: int, languages: list[str]) -> MatchedSpaces:
    """Sentences in several languages, the corpus's own parts: 701 to learn from, 99 to choose on, 204 unseen; 7 topics."""
    with lzma.open(folder / "text" / "sib200.json.xz") as file:
        corpus = json.load(file)
    part = np.array(corpus["split"])
    embedded = {}
    for language in languages:
        sentences = np.array(corpus["text"][language], dtype=object)
        texts = [list(sentences[part == name]) for name in ("train", "dev", "test")]
        embedded[language] = embed_text(texts, "char_wb", seed)
    labels = torch.tensor(corpus["label"])[torch.from_numpy(part == "test")]
    return MatchedSpaces(f"SIB-200, {len(languages)} languages", *_by_part(embedded), labels)


def embed_text(parts: list[list[str]], unit: str, seed: int, width: int = TEXT_WIDTH) -> list[Tensor]:
    """TF-IDF and truncated SVD of one language alone, fitted on the first part: words, or runs of 2 to 4 letters."""
    ngrams = (2, 4) if unit == "char_wb" else (1, 1)
    counts = TfidfVectorizer(analyzer=unit, ngram_range=ngrams, sublinear_tf=True, min_df=2)
    svd = TruncatedSVD(width, random_state=seed)
    first = svd.fit_transform(counts.fit_transform(parts[0]))
    return [torch.from_numpy(rows) for rows in (first, *(svd.transform(counts.transform(part)) for part in parts[1:]))]


def _by_part(embedded: dict[str, list[Tensor]]) -> list[dict[str, Tensor]]:
    return [dict(zip(embedded, parts, strict=True)) for parts in zip(*embedded.values(), strict=True)]


def cifar_networks(folder: Path, n_train: int = 5000) -> MatchedSpaces:
    """Last features of five trained CIFAR-10 networks on original pixels: n_train training and 1,017 test images."""
    train, test = {}, {}
    train_NHWC, _ = lossless_images(folder, "train")
    test_NHWC, labels = lossless_images(folder, "test")
    for name in ("resnet20", "resnet32", "resnet44", "resnet56", "resnet8_mlperf_tiny"):
        weights = load_file(folder / "cifar10_models" / f"{name}.safetensors")
        encode = resnet8_features if name.startswith("resnet8") else resnet_features
        train[name], test[name] = (
            torch.cat([encode(weights, images.permute(0, 3, 1, 2).float()) for images in part.split(500)]).double()
            for part in (train_NHWC[:n_train], test_NHWC)
        )
    return MatchedSpaces(f"CIFAR-10, {len(train)} networks", train, None, test, labels)


def lossless_images(folder: Path, split: str) -> tuple[Tensor, Tensor]:
    """uint8 images (N, 32, 32, 3) out of the mosaic of 50 per row, and their labels."""
    place = folder / "cifar10_lossless_subset"
    mosaic: NDArray[np.uint8] = np.asarray(Image.open(place / f"{split}_mosaic50.webp").convert("RGB"))
    index = np.load(place / f"{split}_index.npz")
    tiles = mosaic.reshape(-1, 32, 50, 32, 3).swapaxes(1, 2).reshape(-1, 32, 32, 3)[: len(index["index"])]
    return torch.from_numpy(tiles.copy()), torch.from_numpy(index["labels"].astype(np.int64))


def resnet_features(weights: dict[str, Tensor], images_BCHW: Tensor) -> Tensor:
    """Pooled features (B, 64) of a CIFAR ResNet with parameter-free shortcuts: strided slice, zero channels."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    x = (images_BCHW / 255 - mean) / std
    x = F.relu(_normalised(weights, "bn1", F.conv2d(x, weights["conv1.weight"], padding=1), 1e-5))
    blocks = sorted({tuple(name.split(".")[:2]) for name in weights if name.startswith("layer")}, key=_block_order)
    for layer, number in blocks:
        block = f"{layer}.{number}"
        stride = 2 if weights[f"{block}.conv1.weight"].shape[0] > x.shape[1] else 1
        h = F.conv2d(x, weights[f"{block}.conv1.weight"], stride=stride, padding=1)
        h = F.relu(_normalised(weights, f"{block}.bn1", h, 1e-5))
        h = _normalised(weights, f"{block}.bn2", F.conv2d(h, weights[f"{block}.conv2.weight"], padding=1), 1e-5)
        missing = h.shape[1] - x.shape[1]
        x = F.relu(h + F.pad(x[:, :, ::stride, ::stride], (0, 0, 0, 0, missing // 2, missing // 2)))
    return x.mean(dim=(2, 3))


def resnet8_features(weights: dict[str, Tensor], images_BCHW: Tensor) -> Tensor:
    """Pooled features (B, 64) of MLPerf Tiny's ResNet-8: pixels 0..255, TensorFlow's padding, convolved shortcuts."""

    def convolve(x: Tensor, conv: int, stride: int = 1) -> Tensor:
        name = "conv2d" if conv == 0 else f"conv2d_{conv}"
        kernel = weights[f"{name}.weight"]
        if kernel.shape[-1] == 3:
            x = F.pad(x, (2 - stride, 1, 2 - stride, 1))  # "same": with stride 2 only right and below
        return F.conv2d(x, kernel, weights[f"{name}.bias"], stride=stride)

    def normalise(x: Tensor, norm: int) -> Tensor:
        return _normalised(weights, "batch_normalization" if norm == 0 else f"batch_normalization_{norm}", x, 1e-3)

    x = F.relu(normalise(convolve(images_BCHW, 0), 0))
    for first, shortcut in ((1, None), (3, 5), (6, 8)):  # numbers of the convolutions
        norm = first if shortcut is None else {3: 3, 6: 5}[first]
        stride = 1 if shortcut is None else 2
        h = F.relu(normalise(convolve(x, first, stride), norm))
        h = normalise(convolve(h, first + 1), norm + 1)
        x = F.relu(h + (x if shortcut is None else convolve(x, shortcut, 2)))
    return x.mean(dim=(2, 3))


def _normalised(weights: dict[str, Tensor], name: str, x_BCHW: Tensor, eps: float) -> Tensor:
    parts = (weights[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
    return F.batch_norm(x_BCHW, *parts, eps=eps)


def _block_order(block: tuple[str, ...]) -> tuple[str, int]:
    return block[0], int(block[1])
