"""Best-attack adversarial robustness: what users import, and the `bestattack` command.

>>> import torch
>>> from bestattack import evaluate
>>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2)).eval()
>>> x = torch.full((8, 1, 2, 2), 0.5)
>>> report = evaluate(model, x, model(x).argmax(1), norm="linf", eps=0.01, attacks=["pgd"])
>>> report.natural
1.0
"""

import importlib.util
import os
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

# This must be set before torch is loaded. If threads spin while they wait for a core that another
# process occupies, small networks become tens of times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

if TYPE_CHECKING:
    from attacks import Attack, Facts, Problem, ThreatModel
    from benchmark import (
        Combined,
        Comparison,
        Inspection,
        LoadedRun,
        Report,
        UserError,
        combine,
        compare,
        evaluate,
        inspect,
        load_dataset,
        load_run,
    )
    from defenses import Recipe

__all__ = [
    "Attack",
    "Combined",
    "Comparison",
    "Facts",
    "Inspection",
    "LoadedRun",
    "Problem",
    "Recipe",
    "Report",
    "ThreatModel",
    "UserError",
    "__version__",
    "combine",
    "compare",
    "evaluate",
    "inspect",
    "load_dataset",
    "load_run",
]

# The package that each public name comes from. It is imported when the name is first asked for,
# after `_check_packages`.
_SOURCES = {
    "attacks": ("Attack", "Facts", "Problem", "ThreatModel"),
    "benchmark": (
        "Combined",
        "Comparison",
        "Inspection",
        "LoadedRun",
        "Report",
        "UserError",
        "combine",
        "compare",
        "evaluate",
        "inspect",
        "load_dataset",
        "load_run",
    ),
    "defenses": ("Recipe",),
}
_PACKAGES = (*_SOURCES, "leaderboard")

try:
    __version__ = version("bestattack")
except PackageNotFoundError:  # a checkout that is not installed
    __version__ = "not installed"


def _check_packages() -> None:
    """Raises ImportError, in one line, where a package of another project hides one of ours."""
    home = Path(__file__).resolve().parent
    for name in _PACKAGES:
        loaded = sys.modules.get(name)
        spec = loaded.__spec__ if loaded is not None else importlib.util.find_spec(name)
        if spec is None:
            raise ImportError(f"bestattack is damaged: its package {name!r} is missing; reinstall")
        places = [*(spec.submodule_search_locations or ()), str(spec.origin)]
        if Path(places[0]).resolve() != home / name:
            raise ImportError(
                f"another {name!r}, at {places[0]}, hides the package of that name that bestattack "
                "needs: rename or uninstall it, or start Python in another folder"
            )


def __getattr__(name: str) -> Any:
    for package, names in _SOURCES.items():
        if name in names:
            _check_packages()
            # Kept, so that the packages are checked once for each name.
            globals()[name] = value = getattr(importlib.import_module(package), name)
            return value
    raise AttributeError(f"module 'bestattack' has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(__all__)


def main() -> None:
    """Run the command line; a user's mistake is one line on stderr and exit status 1."""
    try:
        _check_packages()
    except ImportError as error:
        print(f"bestattack: {error}", file=sys.stderr)
        sys.exit(1)
    import leaderboard.cli  # noqa: F401 (adds its commands)
    from benchmark.cli.main import main as run

    run()


if __name__ == "__main__":
    main()
