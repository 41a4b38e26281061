"""How robustness is measured: data sets, the evaluator, records, reports and the command line."""

from benchmark.api import evaluate
from benchmark.errors import UserError
from benchmark.report import Report

__all__ = ["Report", "UserError", "evaluate"]
