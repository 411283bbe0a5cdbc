"""The picture of the README: two random encoders of the digits, rows shuffled, three anchors.

python benchmarks/two_spaces.py
"""

from pathlib import Path

import torch
from sklearn.datasets import load_digits

from neigenmaps.alignment import LatentFunctionalMap
from neigenmaps.evaluation import principal_components
from neigenmaps.reporting.alignment_figures import plot_matched_spaces

digits, generator = load_digits(), torch.Generator().manual_seed(0)
pixels, labels = torch.tensor(digits.data, dtype=torch.float32), torch.tensor(digits.target)
x = torch.tanh(pixels @ torch.randn(64, 100, generator=generator) / 60)
order = torch.randperm(len(pixels), generator=generator)
y = torch.tanh(pixels @ torch.randn(64, 80, generator=generator) / 60)[order]
partner = order.argsort()
anchors = torch.tensor([0, 97, 194])

lfm = LatentFunctionalMap().fit(x, y, anchors=(anchors, partner[anchors]))
matches = lfm.correspondences()
right = matches.index == partner
print(f"{len(x)} rows, {len(anchors)} anchors: confidence {lfm.confidence_:.2f}, right {right.double().mean():.3f}")
plot_matched_spaces(
    principal_components(x, n_components=2)[0],
    principal_components(y, n_components=2)[0],
    lfm.functional_map_,
    matches.index,
    labels,
    Path(__file__).parent / "results" / "two_spaces.png",
    right_N=right,
)
