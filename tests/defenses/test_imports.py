"""The package `defenses` as a whole: what it needs to be imported."""

import subprocess
import sys

NEEDED = """
import sys
import numpy, torch
known = set(sys.modules)
import defenses, defenses.verification
print(*sorted({name.partition(".")[0] for name in set(sys.modules) - known}))
"""


def test_defenses_need_nothing_but_torch_and_numpy() -> None:
    ended = subprocess.run([sys.executable, "-c", NEEDED], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    loaded = set(ended.stdout.split()) - set(sys.stdlib_module_names)
    assert {name for name in loaded if not name.startswith("_")} <= {"attacks", "defenses", "numpy"}
