"""What the tests of `benchmark` share: how commands ended, and what they wrote."""

from pathlib import Path

import pandas as pd

from tests.conftest import Cli, Ended

__all__ = ["Cli", "Ended", "assert_written", "refused"]


def refused(ended: Ended, line: str) -> None:
    """Assert that a command ended with one line."""
    assert ended == (1, "", f"bestattack: {line}\n")


def assert_written(folder: Path, name: str, ended: Ended) -> pd.DataFrame:
    """The records of a study, once it is clear that it printed and wrote all that it should."""
    assert (ended.status, ended.err) == (0, "")
    assert ended.out == (folder / f"{name}.md").read_text() + "\n"
    assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    return pd.read_csv(folder / f"{name}.csv", dtype={"label": str})
