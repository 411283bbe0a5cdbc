"""Neural eigenmaps: encoders whose outputs are the ordered eigenfunctions of the augmentation kernel.

Start at `neigenmaps/functional/eigenmap.py`. Heavy packages load only where they are used:
`neigenmaps.training` (Lightning), `neigenmaps.nn` (timm, lightly), `neigenmaps.data` (torchvision).
"""

from neigenmaps.errors import NeigenmapsError

__version__ = "0.1.0"

__all__ = ["NeigenmapsError", "__version__"]
