"""The picture of the universe in the README: four descriptions of the bundled digits, before and after alignment.

    python benchmarks/universe_picture.py

Pixels; their whitened principal components; histograms of edges in cells of 4 x 4; a Laplacian eigenmap (of all images,
without labels). The universe is learned on 1,200 images; the picture shows the other 597, and so does the agreement: the
mean cosine with the consensus of the other models.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor

from neigenmaps.alignment import GCPA, any_to_any
from neigenmaps.evaluation import principal_components
from neigenmaps.functional.geometry_correction import directions
from neigenmaps.reporting.alignment_figures import plot_universe
from neigenmaps.spectral import laplacian_eigenbasis, neighbor_graph

N_LEARNED = 1200


def edge_histograms(images_NHW: Tensor) -> Tensor:
    """Strength of the gradient in 8 directions, summed over cells of 4 x 4, of unit length: (N, 32)."""
    down = F.pad(images_NHW.diff(dim=1), (0, 0, 0, 1))
    right = F.pad(images_NHW.diff(dim=2), (0, 1))
    strength = (down.square() + right.square()).sqrt()
    bin_NHW = ((torch.atan2(down, right) / torch.pi + 1) * 4).long().clamp(max=7)
    by_direction = F.one_hot(bin_NHW, 8).movedim(-1, 1) * strength[:, None]
    return F.normalize(F.avg_pool2d(by_direction, 4).flatten(1).sqrt(), dim=1)


digits = load_digits()
pixels, labels = torch.tensor(digits.data, dtype=torch.float64), torch.tensor(digits.target)
components = principal_components(pixels, n_components=30)[0]
models = {
    "pixels": pixels,
    "whitened PCA": components / components.std(dim=0),
    "edge histograms": edge_histograms(torch.tensor(digits.images)),
    "Laplacian eigenmap": laplacian_eigenbasis(neighbor_graph(pixels), 31).eigenvectors_NK[:, 1:],
}
order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(0))
learned, shown = order[:N_LEARNED], order[N_LEARNED:]
universe = GCPA().fit({name: x[learned] for name, x in models.items()})
codes = {name: F.normalize(universe.transform(x[shown], source=name), dim=1) for name, x in models.items()}
units, consensus, _ = directions(torch.stack(list(codes.values())))
agreement = (units * consensus).sum(dim=2).mean(dim=1).tolist()
rank_1 = any_to_any(codes).values("rank_1").mean().item()
print(f"{universe.corrector_}: Rank-1 {rank_1:.3f} among {len(shown)} images, agreement {agreement}")

axes = torch.linalg.eigh(torch.cov(torch.cat(list(codes.values())).T)).eigenvectors[:, -2:].flip(1)
own = {name: principal_components(x, n_components=2)[0][shown] for name, x in models.items()}
plot_universe(
    {name: x / x.std() for name, x in own.items()},
    {name: u @ axes for name, u in codes.items()},
    dict(zip(models, agreement, strict=True)),
    labels[shown],
    Path(__file__).parent / "results" / "universe.png",
)
