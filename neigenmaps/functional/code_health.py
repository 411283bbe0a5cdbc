"""Has a representation collapsed? Three numbers of one batch of codes, cheap enough for training: one Gram product, no eigenvalues.

With C the correlation matrix of the k functions over the B rows of a batch, ||C||_F^2 = sum of its squared eigenvalues, so that

    rank = k^2 / ||C||_F^2

counts the directions that carry the codes: k when functions are uncorrelated, r when they are combinations of r functions, 1 when
all are copies of one. Noise of a batch lowers it: k independent functions give about 1 / (1/k + 1/B).
"""

from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from neigenmaps.errors import ShapeError

COPY = 0.95  # |correlation| from which a function adds nothing: it has at most a tenth of its variance to itself
CONSTANT = 1e-6  # a variance below this share of the mean square is that of a constant
LEADING = 1024  # functions looked at: for more of them the Gram product would no longer be cheap

Number = TypeVar("Number", Tensor, float)


class CodeHealth(NamedTuple, Generic[Number]):
    """rank: see the module. rank_share: of what independent functions would have. copies: share of functions whose correlation
    with an earlier one exceeds 0.95. alive: share that is not constant. variance: summed over functions. All scalars,
    tensors or numbers."""

    rank: Number
    rank_share: Number
    copies: Number
    alive: Number
    variance: Number


def code_health(codes_BK: Tensor) -> CodeHealth[Tensor]:
    """Of one view of a batch, (B, k) with B >= 2; of the first 1,024 functions where there are more. Nothing waits for the device.

    rank and rank_share are 0 when no function is alive.
    """
    if codes_BK.ndim != 2 or codes_BK.shape[0] < 2 or codes_BK.shape[1] < 1:
        raise ShapeError(f"expected codes (B, k) of at least 2 rows, got {tuple(codes_BK.shape)}: raise the batch size")
    codes = codes_BK[:, :LEADING].to(torch.promote_types(codes_BK.dtype, torch.float32))
    mean_K = codes.mean(0)
    codes = codes - mean_K
    variance_K = codes.square().mean(0)
    alive_K = variance_K > CONSTANT * (variance_K + mean_K.square())
    codes *= alive_K / (len(codes) * variance_K).clamp_min(torch.finfo(codes.dtype).tiny).sqrt()
    correlation_KK = codes.T @ codes
    n_alive = alive_K.sum(dtype=codes.dtype)
    squares = torch.linalg.vector_norm(correlation_KK).square().clamp_min(1)
    rank = n_alive.square() / squares
    independent = n_alive + n_alive * (n_alive - 1) / len(codes)  # what squares would be
    copies = (correlation_KK.abs_() > COPY).triu_(1).any(0).to(codes.dtype).mean()
    return CodeHealth(rank, independent / squares, copies, alive_K.to(codes.dtype).mean(), variance_K.sum())
