"""Questions asked of a trained model, one evaluator each."""

from clipkit.evaluation.base import Evaluator, Part, Result, evaluate
from clipkit.evaluation.classify import Classify
from clipkit.evaluation.knn import KNN
from clipkit.evaluation.linear_probe import LinearProbe
from clipkit.evaluation.retrieval import Retrieval
from clipkit.evaluation.wise_ft import WiseFT

__all__ = [
    "EVALUATORS",
    "KNN",
    "Classify",
    "Evaluator",
    "LinearProbe",
    "Part",
    "Result",
    "Retrieval",
    "WiseFT",
    "evaluate",
]

EVALUATORS: dict[str, type[Evaluator]] = {
    "retrieval": Retrieval,
    "classify": Classify,
    "linear_probe": LinearProbe,
    "knn": KNN,
    "wise_ft": WiseFT,
}
