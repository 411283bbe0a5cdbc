"""Many models on one probe set, each with each: similarities, one universe, and the tree of which are nearest.

panel = ReferencePanel({"run 1": ..., "run 2": ..., "pixels": PixelReference()}, probe)
comparison = compare_models(panel)
comparison.similarity["lfm"], comparison.merges, comparison.order
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import torch
from scipy.cluster.hierarchy import leaves_list, linkage  # type: ignore[import-untyped]
from scipy.spatial.distance import squareform  # type: ignore[import-untyped]
from torch import Tensor

from neigenmaps.errors import InputError
from neigenmaps.evaluation.convergence import MEASURES, ReferencePanel
from neigenmaps.functional.pair_ranking import pair_ranks


@dataclass(frozen=True, eq=False)
class ModelComparison:
    """similarity: by measure, calibrated, (M, M), 0 what shuffled rows give. rank1: in the universe, row model to column model.

    merges: rows (node, node, distance, leaves) of average linkage over 1 - similarity of the first measure, in scipy's
    numbering. order: models along the tree, such that neighbours are alike. places: held-out rows (H, 2) in the universe, by
    model; place_rows: which rows of the probe set these are.
    """

    names: tuple[str, ...]
    similarity: dict[str, list[list[float]]]
    rank1: list[list[float]] | None
    merges: list[list[float]]
    order: list[int]
    places: dict[str, Tensor]
    place_rows: Tensor

    def as_dict(self) -> dict[str, Any]:
        """What JSON holds: all but the places."""
        tree = {"merges": self.merges, "order": self.order}
        return {"models": list(self.names), "similarity": self.similarity, "rank1": self.rank1, **tree}


def compare_models(panel: ReferencePanel) -> ModelComparison:
    """The panel's references, each with each, by its methods and measures. InputError for fewer than two, or nothing to measure."""
    names = list(panel.features)
    if len(names) < 2:
        raise InputError(f"expected at least two models to compare, got {len(names)}")
    similarity: dict[str, list[list[float]]] = {}
    if "lfm" in panel.settings.methods:
        similarity["lfm"] = [[panel.facts["between"][a][b] for b in names] for a in names]
    for measure in panel.settings.measures:
        similarity[measure] = _pairwise(panel, measure, names)
    if not similarity:
        raise InputError("expected the method lfm or a measure, got neither: models need a likeness to be compared by")
    near_MM = torch.tensor(next(iter(similarity.values())), dtype=torch.float64)
    apart = squareform((1 - near_MM).clamp_min(0).fill_diagonal_(0).numpy(), checks=False)
    merges = linkage(apart, "average", optimal_ordering=True)
    rank1 = None
    if panel.universe is not None:
        rank1 = [[_rank1(panel.placed[a], panel.placed[b]) for b in names] for a in names]
    return ModelComparison(
        tuple(names),
        similarity,
        rank1,
        merges.tolist(),
        leaves_list(merges).tolist(),
        {} if panel.universe is None else {name: panel.places(rows) for name, rows in panel.placed.items()},
        panel.held_rows,
    )


def _pairwise(panel: ReferencePanel, measure: str, names: list[str]) -> list[list[float]]:
    spaces = panel.leading if measure == "procrustes" else panel.features
    values_MM = torch.eye(len(names), dtype=torch.float64)
    for i, j in itertools.combinations(range(len(names)), 2):
        generator = torch.Generator().manual_seed(panel.settings.seed)
        null = panel.settings.n_permutations
        found = MEASURES[measure](spaces[names[i]], spaces[names[j]], null=null, generator=generator)
        assert found.calibrated is not None
        values_MM[i, j] = values_MM[j, i] = float(found.calibrated)
    return values_MM.tolist()


def _rank1(queries_HK: Tensor, gallery_HK: Tensor) -> float:
    return float((pair_ranks(queries_HK, gallery_HK).first_rank_Q == 1).double().mean())
