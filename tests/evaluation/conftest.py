"""Images that planted references stand for."""

import pytest
import torch
from planted_clouds import N

from neigenmaps.data import ImageStore


@pytest.fixture(scope="module")
def probe() -> ImageStore:
    pixels = torch.randint(0, 256, (N, 1, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return ImageStore.from_tensors(pixels, torch.arange(N) % 5, source="planted")
