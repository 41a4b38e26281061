"""Packages that are needed for some sources of models alone, and installed as extras."""

from importlib.util import find_spec


def installed(package: str) -> bool:
    """Whether a package can be imported, without importing it."""
    return find_spec(package) is not None


def need(extra: str, *packages: str) -> None:
    """Raises ValueError, with the command that installs them, where packages are missing."""
    missing = [package for package in packages if not installed(package)]
    if missing:
        raise ValueError(f"needs {', '.join(missing)}: pip install 'bestattack[{extra}]'")
