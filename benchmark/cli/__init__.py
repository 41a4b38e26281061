"""The command line of the benchmark, which the leaderboard adds its commands to."""

from benchmark.cli.main import app

__all__ = ["app"]
