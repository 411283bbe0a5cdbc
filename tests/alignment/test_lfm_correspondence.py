from pathlib import Path

import pytest
import torch

from neigenmaps.alignment import correspondence
from neigenmaps.alignment.correspondence import correspondences_of
from neigenmaps.errors import InputError
from neigenmaps.reporting.alignment_figures import plot_anchor_curves


def test_near_rows_alone_give_the_matches_of_all_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(150, 12, generator=g, dtype=torch.float64)
    y = x[torch.randperm(150, generator=g)[:120]] + 0.5 * torch.randn(120, 12, generator=g, dtype=torch.float64)
    whole = correspondences_of(x, y)
    monkeypatch.setattr(correspondence, "DENSE_PAIRS", 0)
    near = correspondences_of(x, y)
    mutual = whole.mutual & near.mutual
    assert mutual.sum() > 100
    assert torch.equal(whole.index[mutual], near.index[mutual])
    assert (whole.mutual == near.mutual).double().mean() > 0.95
    assert ((near.score > 0) & (near.score <= 1)).all()


def test_scores_are_shares_and_mutual_matches_point_at_each_other() -> None:
    x = torch.randn(40, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    there, back = correspondences_of(x, -x), correspondences_of(-x, x)
    rows = torch.arange(40)
    assert ((there.score > 0) & (there.score <= 1)).all()
    assert torch.equal(there.mutual, correspondences_of(x, -x).mutual)
    assert (back.index[there.index[there.mutual]] == rows[there.mutual]).double().mean() > 0.9


def test_picture_of_scores_by_anchors(tmp_path: Path) -> None:
    panels = {"pair": {"ours": {2: [0.9, 0.8], 5: [1.0, 0.9]}, "theirs": {2: [0.1], 5: [0.2]}}}
    plot_anchor_curves(panels, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 5000
    with pytest.raises(InputError, match="one pair of spaces or more"):
        plot_anchor_curves({}, tmp_path / "none.png")
