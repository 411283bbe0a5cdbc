"""Maps between representation spaces: pairwise, through functions on graphs, or through one universe for all."""

__all__: list[str] = []
