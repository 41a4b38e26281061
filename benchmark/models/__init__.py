"""Models that are ready to be attacked: loaded from a folder, or trained into one."""

from benchmark.models.obtain import train
from benchmark.models.others import check_fit, check_sources, fetch, parts_of, sources_of
from benchmark.models.trained import Trained, load_saved

__all__ = [
    "Trained",
    "check_fit",
    "check_sources",
    "fetch",
    "load_saved",
    "parts_of",
    "sources_of",
    "train",
]
