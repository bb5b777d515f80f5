"""Questions asked of a trained model, one evaluator each."""

from clipkit.evaluation.base import Evaluator, Part, Result, evaluate
from clipkit.evaluation.classify import Classify
from clipkit.evaluation.retrieval import Retrieval
from clipkit.evaluation.wise_ft import WiseFT
from clipkit.evaluation.zero_shot import ZeroShot

__all__ = ["EVALUATORS", "Classify", "Evaluator", "Part", "Result", "Retrieval", "WiseFT", "ZeroShot", "evaluate"]

EVALUATORS: dict[str, type[Evaluator]] = {
    "retrieval": Retrieval,
    "classify": Classify,
    "zero_shot": ZeroShot,
    "wise_ft": WiseFT,
}
