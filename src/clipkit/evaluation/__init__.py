"""Questions asked of a trained model, one evaluator each."""

from clipkit.evaluation.base import Evaluator, Part, Result, evaluate
from clipkit.evaluation.classify import Classify
from clipkit.evaluation.retrieval import Retrieval

__all__ = ["EVALUATORS", "Classify", "Evaluator", "Part", "Result", "Retrieval", "evaluate"]

EVALUATORS: dict[str, type[Evaluator]] = {"retrieval": Retrieval, "classify": Classify}
