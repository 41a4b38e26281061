"""Which attack broke what: attribution of broken samples, and the order of attacks that would have
broken the same ones soonest."""

from benchmark.report.breaks.attribution import Attribution
from benchmark.report.breaks.cascades import Cost, cost_of, soonest

__all__ = ["Attribution", "Cost", "cost_of", "soonest"]
