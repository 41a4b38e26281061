"""The log of a training: a row for each epoch that is done. By it training stops early."""

from pathlib import Path

from defenses.weights import write_atomically

COLUMNS = ("epoch", "loss", "accuracy", "learning_rate", "validation_loss", "seconds")
_VALIDATION = COLUMNS.index("validation_loss")

# Each row has a number for each of the columns.
Rows = list[list[float]]


def worse(rows: Rows) -> bool:
    """Whether the last epoch did not lower the loss on withheld images. It goes by the log, because
    a training that is resumed has that too."""
    return len(rows) > 1 and rows[-1][_VALIDATION] >= rows[-2][_VALIDATION]


def write_log(path: Path, rows: Rows) -> None:
    """Write the log as CSV."""
    lines = [",".join(COLUMNS)]
    lines += [",".join(f"{value:.6g}" for value in row) for row in rows]
    write_atomically(path, lambda file: file.write("\n".join([*lines, ""]).encode()))
