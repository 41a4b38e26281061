"""Submissions: rows with their evidence, which are made, opened and replayed."""

# `submit` and `migrate` are imported from the modules of these names, which they would hide here.
from leaderboard.submission.record import Record, read_record
from leaderboard.submission.replay import replay_row
from leaderboard.submission.submission import Row, open_row, row_folders

__all__ = ["Record", "Row", "open_row", "read_record", "replay_row", "row_folders"]
