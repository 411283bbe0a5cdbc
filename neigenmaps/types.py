"""Names shared by several packages.

Letters in variable names give the axes of a tensor, in order:
N rows, B batch, V views, K code width, F feature width, C H W image, P anchors, Q queries.
"""

from typing import Literal

Scaling = Literal["unit", "sqrt_eigenvalue"]
"""How codes are scaled: every function with variance 1, or variance equal to its eigenvalue."""

Space = Literal["eigenmap", "backbone"]
"""What `encode` returns: ordered eigenfunctions, or the features before the projector."""
