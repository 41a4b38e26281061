"""Which data sets are there, and whether there is room where files are written."""

import os
import shutil
from pathlib import Path

from benchmark.data.places import IN_FILES, data_roots, files_of, find
from benchmark.direct.inspection import in_bytes
from benchmark.machine.checkup import Line, Section

# With less room, in bytes, a data set or the models of a run may not fit.
_LITTLE = int(1e9)


def data_sets(root: Path | None) -> Section:
    """Where each data set is found, as a run would look for it. Nothing is read or downloaded."""
    lines = [
        Line("digits", "comes with scikit-learn"),
        *(_data_set(name, root) for name in IN_FILES),
    ]
    return Section("Data sets", lines)


def _data_set(name: str, root: Path | None) -> Line:
    files = [names for part in ("train", "test") for names in files_of(name, part)]
    there = {names[0]: find(names, root) for names in files}
    found = [path for path in there.values() if path is not None]
    if not found:
        return Line(name, "not here: the first run on it downloads it")
    lacking = len(there) - len(found)
    if lacking:
        return Line(
            name,
            f"{found[0].parent}, without {lacking} of its {len(there)} files, which "
            "the first run downloads",
        )
    return Line(name, str(found[0].parent))


def storage(root: Path | None) -> Section:
    """Where data sets and runs are written, and how much room there is.

    Data sets are downloaded into the first of their folders that can be written.
    """
    *given, cache = data_roots(root)
    lines = [_folder("data", folder, is_needed=False) for folder in given]
    lines.append(_folder("cache", cache, is_needed=not any(map(_is_writable, given))))
    return Section("Storage", [*lines, _folder("runs", Path("runs").absolute(), is_needed=True)])


def _folder(name: str, folder: Path, is_needed: bool) -> Line:
    """A folder, which may not exist yet. It is not made."""
    if not _is_writable(folder):
        where = (
            "name another with --out" if name == "runs" else "set BESTATTACK_DATA to another folder"
        )
        remedy = f"Let {folder} be written, or {where}." if is_needed else ""
        return Line(name, f"{folder}, cannot be written", remedy)
    free = shutil.disk_usage(_existing(folder)).free
    remedy = f"Make room on the disk of {folder}: a run may not fit." if free < _LITTLE else ""
    new = "" if folder.exists() else ", not made yet"
    return Line(name, f"{folder}{new}, {in_bytes(free)} free", remedy)


def _existing(folder: Path) -> Path:
    """The folder, or the one above it in which it would be made."""
    return next(path for path in (folder, *folder.parents) if path.exists())


def _is_writable(folder: Path) -> bool:
    existing = _existing(folder.absolute())
    return existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)
