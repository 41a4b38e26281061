"""How robustness is measured: data sets, the evaluator, records, reports and the command line."""

import os

# Before torch is loaded: threads that spin while they wait for a core that another process has make
# small networks tens of times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from benchmark.analysis.comparison import Comparison, compare
from benchmark.data.sets import load_dataset
from benchmark.direct import Inspection, evaluate, inspect
from benchmark.errors import UserError
from benchmark.report.report import Report
from benchmark.run.loaded_run import LoadedRun, load_run
from benchmark.threats import Combined, combine

__all__ = [
    "Combined",
    "Comparison",
    "Inspection",
    "LoadedRun",
    "Report",
    "UserError",
    "combine",
    "compare",
    "evaluate",
    "inspect",
    "load_dataset",
    "load_run",
]
