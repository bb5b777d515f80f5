"""Data in, matplotlib Figure out."""

from clipkit.plots.attacks import AttackedPicture, attack_grid
from clipkit.plots.classification import ConfusedPair, confused_pairs_grid, confusion_matrix, reliability_diagram
from clipkit.plots.comparison import ComparedMeasure, compared_models
from clipkit.plots.corruptions import corrupted_pictures, corruption_heatmap
from clipkit.plots.curves import curves
from clipkit.plots.dendrogram import cluster_count_curve, dendrogram
from clipkit.plots.distributions import class_distribution, length_histograms, picture_sizes
from clipkit.plots.novelty import novelty_density, novelty_det, novelty_roc
from clipkit.plots.pictures import class_bars, retrieval_grid, similarity_heatmap
from clipkit.plots.ranking import ranked_pictures
from clipkit.plots.rates import rates_by_group
from clipkit.plots.shots import ShotLine, accuracy_by_shots
from clipkit.plots.sweeps import objective_front, parallel_coordinates, parameter_importances, trial_history
from clipkit.plots.trade_off import trade_off

__all__ = [
    "AttackedPicture",
    "ComparedMeasure",
    "ConfusedPair",
    "ShotLine",
    "accuracy_by_shots",
    "attack_grid",
    "class_bars",
    "class_distribution",
    "cluster_count_curve",
    "compared_models",
    "confused_pairs_grid",
    "confusion_matrix",
    "corrupted_pictures",
    "corruption_heatmap",
    "curves",
    "dendrogram",
    "length_histograms",
    "novelty_density",
    "novelty_det",
    "novelty_roc",
    "objective_front",
    "parallel_coordinates",
    "parameter_importances",
    "picture_sizes",
    "ranked_pictures",
    "rates_by_group",
    "reliability_diagram",
    "retrieval_grid",
    "similarity_heatmap",
    "trade_off",
    "trial_history",
]
