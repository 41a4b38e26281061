"""Run as a script with the names of modules: imports each in turn, and tells a line of JSON about
it: its name, why it does not import, and whether bestattack can use it all the same."""

import importlib
import json
import os
import sys

from attacks.messages import described
from defenses.foreign.torchvision_source import import_torchvision


def main(modules: list[str]) -> None:
    """Import modules; what they print themselves goes nowhere."""
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as told:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        for module in modules:
            error = _error(module)
            is_replaced = module == "torchvision" and bool(error) and _is_replaced()
            print(json.dumps([module, error, is_replaced]), file=told, flush=True)


def _error(module: str) -> str:
    """Why a module does not import; empty where it does."""
    try:
        importlib.import_module(module)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a module may raise anything
        return described(error)
    return ""


def _is_replaced() -> bool:
    """Whether torchvision imports as bestattack does it. What needs it then imports as well."""
    try:
        import_torchvision()
    except Exception:
        return False
    return True


if __name__ == "__main__":
    main(sys.argv[1:])
