"""Model stitching: the encoder of one network, the head of another, a map in between."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

Module = Callable[[Tensor], Tensor]


class Translator(Protocol):
    """Anything that takes rows of space a to space b, as a fitted `LatentFunctionalMap` or `AffineMap.__call__` does."""

    def transform(self, x_NF: Tensor) -> Tensor: ...


def stitch(encoder_a: Module, head_b: Module, translator: Translator) -> Module:
    """inputs -> head_b(translator.transform(encoder_a(inputs))): the head sees a's embeddings as if they were b's.

    Embeddings are flattened to rows before the map. No gradient flows through a fitted map into encoder a.
    """

    def stitched(inputs: Tensor) -> Tensor:
        embeddings: Tensor = encoder_a(inputs)
        return head_b(translator.transform(embeddings.flatten(1)))

    return stitched
