"""Models in hand: `evaluate` measures one without files, and `inspect` looks at it before."""

from benchmark.direct.evaluate import evaluate
from benchmark.direct.inspect_model import inspect
from benchmark.direct.inspection import Inspection

__all__ = ["Inspection", "evaluate", "inspect"]
