"""Maps between representation spaces: pairwise, through functions on graphs, or through one universe for all."""

from neigenmaps.alignment.aligner import AbstractAligner, Certificate
from neigenmaps.alignment.gpa import GPA

__all__ = ["GPA", "AbstractAligner", "Certificate"]
