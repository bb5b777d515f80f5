"""Data in, matplotlib Figure out."""

from clipkit.plots.curves import curves
from clipkit.plots.pictures import class_bars, retrieval_grid, similarity_heatmap

__all__ = ["class_bars", "curves", "retrieval_grid", "similarity_heatmap"]
