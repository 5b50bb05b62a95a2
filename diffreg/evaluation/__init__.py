"""How well all pairs of a manifest are registered: metrics, intervals over groups, one report.

Called by the command line.
"""

from diffreg.evaluation.evaluate import Evaluation, evaluate, write_evaluation
from diffreg.evaluation.measures import measure_pair
from diffreg.evaluation.summary import Summary, bootstrap, summarize

__all__ = [
    "Evaluation",
    "Summary",
    "bootstrap",
    "evaluate",
    "measure_pair",
    "summarize",
    "write_evaluation",
]
