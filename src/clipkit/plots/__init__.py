"""Data in, matplotlib Figure out."""

from clipkit.plots.curves import curves
from clipkit.plots.distributions import class_distribution, length_histograms, picture_sizes
from clipkit.plots.pictures import class_bars, retrieval_grid, similarity_heatmap

__all__ = [
    "class_bars",
    "class_distribution",
    "curves",
    "length_histograms",
    "picture_sizes",
    "retrieval_grid",
    "similarity_heatmap",
]
