"""Models of one planted latent cloud, as references."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from neigenmaps.data import ImageStore
from neigenmaps.evaluation.references import Reference

N = 150


@dataclass(frozen=True)
class Planted(Reference):
    rows_NF: Tensor = field(repr=False)
    name: str = "planted"

    def embed(self, images: ImageStore) -> Tensor:
        return self.rows_NF

    def key(self) -> str:
        return self.name


def cloud(seed: int, width: int, noise: float = 0.0) -> Tensor:
    """One latent cloud of five clusters, seen through a random tanh map."""
    latent_generator, generator = torch.Generator().manual_seed(0), torch.Generator().manual_seed(seed)
    centres = 2 * torch.randn(5, 6, generator=latent_generator)
    latent = centres[torch.arange(N) % 5] + torch.randn(N, 6, generator=latent_generator)
    seen = torch.tanh(latent @ torch.randn(6, width, generator=generator) / 6**0.5)
    return seen + noise * torch.randn(N, width, generator=generator)
