"""A residual perceptron: rows in, functions out; the last hidden layer can be had too."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from neigenmaps.graphs.settings import check_real, check_whole


class Functions(NamedTuple):
    """hidden: (B, H) the last hidden layer. codes: (B, K) a linear map of it, as the objective sees them."""

    hidden: Tensor
    codes: Tensor


class ResidualMLP(nn.Module):
    """Linear, `depth` residual blocks of norm-linear-GELU, linear. Reads rows in units in which they have mean square 1.

    drop_features: share of the inputs set to zero at random while training, the rest scaled up to keep the mean.
    batch_norm: BatchNorm in the blocks instead of none; needed where rows are sparse and long, as bags of words.
    """

    center_F: Tensor
    scale: Tensor

    def __init__(
        self,
        in_features: int,
        outputs: int,
        *,
        hidden: int = 256,
        depth: int = 2,
        drop_features: float = 0.0,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        check_whole(1, in_features=in_features, outputs=outputs, hidden=hidden)
        check_whole(0, depth=depth)
        check_real(0, 1, drop_features=drop_features)
        self.register_buffer("center_F", torch.zeros(in_features))
        self.register_buffer("scale", torch.ones(()))
        self.drop = nn.Dropout(drop_features)
        self.first = nn.Linear(in_features, hidden)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.BatchNorm1d(hidden) if batch_norm else nn.Identity(), nn.GELU(), nn.Linear(hidden, hidden))
            for _ in range(depth)
        )
        self.last_norm = nn.BatchNorm1d(hidden) if batch_norm else nn.Identity()
        self.last = nn.Linear(hidden, outputs)

    def set_units(self, center_F: Tensor, scale: Tensor) -> None:
        """What is taken off the rows, and what they are divided by: one number, so that columns keep their proportions."""
        self.center_F.copy_(center_F)
        self.scale.copy_(scale)

    def forward(self, rows_BF: Tensor) -> Functions:
        h_BH = self.first(self.drop((rows_BF.to(self.scale) - self.center_F) / self.scale))
        for block in self.blocks:
            h_BH = h_BH + block(h_BH)
        hidden_BH = nn.functional.gelu(self.last_norm(h_BH))
        return Functions(hidden_BH, self.last(hidden_BH))
