"""Tables and pictures of results. matplotlib lives here and nowhere else."""

from neigenmaps.reporting.figures import (
    plot_eigenfunction_gallery,
    plot_eigenvalues,
    plot_truncation,
    plot_truncation_panels,
)
from neigenmaps.reporting.spread import Curves, Measure, Spread, spreads
from neigenmaps.reporting.tables import eigenvalue_table, markdown_table, truncation_table

__all__ = [
    "Curves",
    "Measure",
    "Spread",
    "eigenvalue_table",
    "markdown_table",
    "plot_eigenfunction_gallery",
    "plot_eigenvalues",
    "plot_truncation",
    "plot_truncation_panels",
    "spreads",
    "truncation_table",
]
