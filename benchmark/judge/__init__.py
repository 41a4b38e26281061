"""The judge: it runs frozen copies of models, and is the only place that gives verdicts."""

from benchmark.judge.evaluator import Samples
from benchmark.judge.examination import check_model, examine
from benchmark.judge.probes import probe
from benchmark.judge.records import Block, Cell, FolderCell, MemoryCell, blocks_of
from benchmark.judge.replica import freeze
from benchmark.judge.subject import Judgement, Subject, Terms, until_steady
from benchmark.judge.surroundings import full_precision, undisturbed

__all__ = [
    "Block",
    "Cell",
    "FolderCell",
    "Judgement",
    "MemoryCell",
    "Samples",
    "Subject",
    "Terms",
    "blocks_of",
    "check_model",
    "examine",
    "freeze",
    "full_precision",
    "probe",
    "undisturbed",
    "until_steady",
]
