"""Runs: models are attacked, and the records are kept, resumed and replayed."""

# `assess` and `verify` are imported from the modules of these names, which they would
# hide here.
from benchmark.run.assess import Settings
from benchmark.run.certify import Certified, certify_model
from benchmark.run.replay.defense_replay import ReplayedRow, replay
from benchmark.run.replay.examples_replay import Verdict
from benchmark.run.run_folder import read_run
from benchmark.run.runner import run
from benchmark.run.verify import Replay

__all__ = [
    "Certified",
    "Replay",
    "ReplayedRow",
    "Settings",
    "Verdict",
    "certify_model",
    "read_run",
    "replay",
    "run",
]
