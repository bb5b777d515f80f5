"""Questions asked of a trained model, one evaluator each."""

from clipkit.evaluation.association import Association
from clipkit.evaluation.base import Evaluator, Part, Result, evaluate
from clipkit.evaluation.classify import Classify
from clipkit.evaluation.corruptions import Corruptions
from clipkit.evaluation.knn import KNN
from clipkit.evaluation.linear_probe import LinearProbe
from clipkit.evaluation.retrieval import Retrieval
from clipkit.evaluation.similarity import Similarity
from clipkit.evaluation.typographic import Typographic
from clipkit.evaluation.wise_ft import WiseFT
from clipkit.evaluation.zero_shot import ZeroShot

__all__ = [
    "EVALUATORS",
    "FAMILIES",
    "KNN",
    "Association",
    "Classify",
    "Corruptions",
    "Evaluator",
    "LinearProbe",
    "Part",
    "Result",
    "Retrieval",
    "Similarity",
    "Typographic",
    "WiseFT",
    "ZeroShot",
    "evaluate",
]

EVALUATORS: dict[str, type[Evaluator]] = {
    "retrieval": Retrieval,
    "classify": Classify,
    "zero_shot": ZeroShot,
    "linear_probe": LinearProbe,
    "knn": KNN,
    "typographic": Typographic,
    "similarity": Similarity,
    "wise_ft": WiseFT,
    "corruptions": Corruptions,
    "association": Association,
}
FAMILIES = {"robustness": ("typographic", "corruptions", "association")}
