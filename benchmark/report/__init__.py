"""From records to accuracies, flags, tables and pictures."""

from benchmark.report.accuracy import Accuracy, Examples
from benchmark.report.flags import FLAGS, Flag
from benchmark.report.report import Report

__all__ = ["FLAGS", "Accuracy", "Examples", "Flag", "Report"]
