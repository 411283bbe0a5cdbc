"""Two sets of word vectors, rows shuffled: mean reciprocal rank by number of anchors, beside what one would do otherwise.

    python benchmarks/lfm_words.py --data DATA/words              # 20 draws, two pairs: an hour on one busy core
    python benchmarks/lfm_words.py --data DATA/words --draws 3 --out three.json
    python benchmarks/lfm_words.py --report                       # table and picture from results/lfm_words.json

Pair "GloVe -> word2vec": the words that glove50_5k.npz (50-d) and word2vec300_1k.npz (300-d) share. Pair "two noisy copies":
the 1,000 first words of GloVe, and the same turned into 100 dimensions, both with Gaussian noise of half a standard
deviation on every coordinate. Rows of Y are shuffled in every draw, and anchors drawn.

Every method sees rows of unit length, centred, made of unit length again. It ranks all rows of Y for each row of X that is
no anchor; accuracy is the share of first places. "one to one" ranks nothing: it is the share of right `correspondences()`.
"""

import argparse
import json
import statistics
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from neigenmaps.alignment import LatentFunctionalMap
from neigenmaps.errors import AlignmentWarning
from neigenmaps.files import whole_file
from neigenmaps.functional.linear_maps import orthogonal_map, ridge_map
from neigenmaps.functional.ranking import reciprocal_rank
from neigenmaps.functional.similarity_neighbours import relative_representation
from neigenmaps.functional.soft_matching import mutual_best
from neigenmaps.provenance import provenance
from neigenmaps.reporting.alignment_figures import plot_anchor_curves

ANCHORS = (2, 3, 5, 10, 25, 50, 100)
OURS, BASELINE = "LatentFunctionalMap", "Procrustes, 10 rounds of mutual neighbours"
RESULTS = Path(__file__).parent / "results"


def common_words(folder: Path) -> tuple[Tensor, Tensor]:
    glove, word2vec = (np.load(folder / name) for name in ("glove50_5k.npz", "word2vec300_1k.npz"))
    place = {word: row for row, word in enumerate(glove["words"].tolist())}
    rows = [(place[word], row) for row, word in enumerate(word2vec["words"].tolist()) if word in place]
    in_glove, in_word2vec = map(list, zip(*rows, strict=True))
    return torch.from_numpy(glove["vectors"][in_glove]).float(), torch.from_numpy(
        word2vec["vectors"][in_word2vec]
    ).float()


def noisy_copies(folder: Path) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x_NF = torch.from_numpy(np.load(folder / "glove50_5k.npz")["vectors"][:1000]).float()
    x_NF = (x_NF - x_NF.mean(dim=0)) / x_NF.std(dim=0)
    turn_FG = torch.linalg.qr(torch.randn(100, 50, generator=generator)).Q.T
    copies = [x_NF + 0.5 * torch.randn(x_NF.shape, generator=generator) for _ in range(2)]
    return copies[0], copies[1] @ turn_FG


PAIRS = {"GloVe -> word2vec": common_words, "two noisy copies": noisy_copies}


def normalised(x_NF: Tensor) -> Tensor:
    x_NF = F.normalize(x_NF, dim=1)
    return F.normalize(x_NF - x_NF.mean(dim=0), dim=1)


def by_orthogonal(x_NF: Tensor, y_NG: Tensor, ix: Tensor, iy: Tensor, n_rounds: int = 0) -> Tensor:
    """Scores (N, N) after the orthogonal map of the anchors, and of `n_rounds` of mutual nearest neighbours."""
    for _ in range(n_rounds + 1):
        placed_NG = orthogonal_map(x_NF[ix], y_NG[iy], translation=False)(x_NF)
        scores_NN = F.normalize(placed_NG, dim=1) @ y_NG.T
        ix, iy = mutual_best(scores_NN)
    return scores_NN


def by_ridge(x_NF: Tensor, y_NG: Tensor, ix: Tensor, iy: Tensor) -> Tensor:
    return F.normalize(ridge_map(x_NF[ix], y_NG[iy], ridge=0.1, translation=False)(x_NF), dim=1) @ y_NG.T


def by_relative(x_NF: Tensor, y_NG: Tensor, ix: Tensor, iy: Tensor) -> Tensor:
    relative = [relative_representation(rows, rows[anchors]) for rows, anchors in ((x_NF, ix), (y_NG, iy))]
    return F.normalize(relative[0], dim=1) @ F.normalize(relative[1], dim=1).T


def scored(scores_NN: Tensor, true_N: Tensor, asked_N: Tensor) -> dict[str, float]:
    order_NN = scores_NN.argsort(dim=1, descending=True, stable=True)
    relevant_NN = (order_NN == true_N[:, None])[asked_N]
    return {
        "mrr": reciprocal_rank(relevant_NN).mean().item(),
        "accuracy": relevant_NN[:, 0].double().mean().item(),
    }


def one_draw(x_NF: Tensor, y_NG: Tensor, n_anchors: int, draw: int) -> dict[str, dict[str, float]]:
    generator = torch.Generator().manual_seed(1000 * n_anchors + draw)
    order_N = torch.randperm(len(x_NF), generator=generator)
    y_NG, true_N = y_NG[order_N], order_N.argsort()
    ix = torch.randperm(len(x_NF), generator=generator)[:n_anchors]
    iy = true_N[ix]
    asked_N = ~torch.isin(torch.arange(len(x_NF)), ix)
    x, y = normalised(x_NF), normalised(y_NG)
    found = {
        "anchors, orthogonal": scored(by_orthogonal(x, y, ix, iy), true_N, asked_N),
        "anchors, ridge": scored(by_ridge(x, y, ix, iy), true_N, asked_N),
        "relative representations": scored(by_relative(x, y, ix, iy), true_N, asked_N),
        BASELINE: scored(by_orthogonal(x, y, ix, iy, 10), true_N, asked_N),
    }
    started = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AlignmentWarning)  # recorded as confidence
        model = LatentFunctionalMap(random_state=draw).fit(x_NF, y_NG, anchors=(ix, iy))
    seconds = time.process_time() - started
    near = model.retrieve(x_NF, len(y_NG)).index_Qk
    ranks_NN = torch.empty_like(near).scatter_(1, near, -torch.arange(len(y_NG)).expand_as(near))
    right = (model.correspondences().index == true_N)[asked_N].double().mean().item()
    found[OURS] = scored(ranks_NN, true_N, asked_N) | {
        "one_to_one": right,
        "confidence": model.confidence_,
        "cpu_seconds": seconds,
    }
    return found


def spread(values: list[float]) -> str:
    return f"{statistics.fmean(values):.3f}" + (f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else "")


def report(record: dict[str, Any], folder: Path, name: str) -> None:
    """Markdown tables of both pairs, mean ± standard deviation over draws, and the picture."""
    lines = ["# Words: by number of anchors", ""]
    panels: dict[str, dict[str, dict[int, list[float]]]] = {}
    for pair, by_anchors in record["pairs"].items():
        counts = list(by_anchors)
        n = len(by_anchors[counts[0]])
        rows: dict[str, list[str]] = {}
        for method in by_anchors[counts[0]][0]:
            for measure in by_anchors[counts[0]][0][method]:
                values = [[draw[method][measure] for draw in by_anchors[count]] for count in counts]
                rows[f"{method}: {measure.replace('_', ' ')}"] = [spread(row) for row in values]
                if measure == "mrr":
                    panels.setdefault(pair, {})[method] = dict(zip(map(int, counts), values, strict=True))
        head = f"**{pair}**, {n} draws" if n > 1 else f"**{pair}**, one draw"
        lines += [head, "", "| anchors | " + " | ".join(counts) + " |", "| --- |" + " --: |" * len(counts)]
        lines += [f"| {row} | " + " | ".join(cells) + " |" for row, cells in rows.items()]
        lines.append("")
    with whole_file(folder / f"{name}.md") as path:
        path.write_text("\n".join(lines))
    plot_anchor_curves(panels, folder / f"{name}.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with glove50_5k.npz and word2vec300_1k.npz")
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--anchors", type=int, nargs="+", default=list(ANCHORS))
    parser.add_argument("--out", type=Path, default=RESULTS / "lfm_words.json")
    parser.add_argument("--report", action="store_true", help="only table and picture, from the file --out")
    arguments = parser.parse_args()
    if arguments.report:
        report(json.loads(arguments.out.read_text()), arguments.out.parent, arguments.out.stem)
        return
    torch.set_num_threads(1)  # matrices here are small: two threads wait for each other
    record: dict[str, Any] = provenance(list(range(arguments.draws))) | {"pairs": {}}
    for draw in range(arguments.draws):
        for pair, load in PAIRS.items():
            x_NF, y_NG = load(arguments.data)
            for n_anchors in arguments.anchors:
                found = one_draw(x_NF, y_NG, n_anchors, draw)
                record["pairs"].setdefault(pair, {}).setdefault(str(n_anchors), []).append(found)
                shown = {method: round(values["mrr"], 3) for method, values in found.items()}
                print(pair, n_anchors, draw, shown, found[OURS], flush=True)
        with whole_file(arguments.out) as path:  # after every draw: an hour's work survives an interruption
            path.write_text(json.dumps(record, indent=1) + "\n")
    report(record, arguments.out.parent, arguments.out.stem)


if __name__ == "__main__":
    main()
