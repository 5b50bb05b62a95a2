"""How well all pairs of a manifest are registered: metrics, intervals over groups, one report."""

from diffreg.evaluation.evaluate import evaluate, write_evaluation
from diffreg.evaluation.measures import measure_pair
from diffreg.evaluation.pages import in_short, summary_table
from diffreg.evaluation.result import Evaluation
from diffreg.evaluation.summary import Summary, bootstrap, summarize

__all__ = [
    "Evaluation",
    "Summary",
    "bootstrap",
    "evaluate",
    "in_short",
    "measure_pair",
    "summarize",
    "summary_table",
    "write_evaluation",
]
