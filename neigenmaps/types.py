"""Names shared by several packages.

Letters in variable names give the axes of a tensor, in order:
N rows, B batch, V views, K code width, F feature width, C H W image, P anchors, Q queries.
"""

from typing import Literal

Scaling = Literal["unit", "sqrt_eigenvalue"]
"""How codes are scaled: every function with variance 1, or with its eigenvalue as variance (inner products = kernel)."""

Space = Literal["eigenmap", "projector", "backbone"]
"""What `encode` returns: ordered eigenfunctions, the projector's raw outputs, or the features before the projector."""

Stem = Literal["default", "cifar"]
"""First layers of a ResNet: as published, or one 3x3 convolution of stride 1 without pooling, for small images."""
