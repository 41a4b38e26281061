"""What of the user's own code is found, from file to file, and identified by its content."""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmark.errors import UserError
from benchmark.user_code import identify_code

Code = Callable[[dict[str, str]], dict[str, Any]]


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Code:
    """The identity of a module `net` with these files beside it, none of which is loaded."""
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("net", "one", "two", "helper", "pack", "boom"):  # of other tests
        monkeypatch.delitem(sys.modules, name, raising=False)

    def identify(files: dict[str, str]) -> dict[str, Any]:
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        importlib.invalidate_caches()
        return identify_code(["net"])

    return identify


def test_files_that_swap_their_content_are_other_code(
    code: Code,
) -> None:
    plus, minus = "SIGN = 1\n", "SIGN = -1\n"
    first = code({"net.py": "import one\nimport two\n", "one.py": plus, "two.py": minus})
    assert first != code({"one.py": minus, "two.py": plus})
    assert first == code({"one.py": plus, "two.py": minus})


@pytest.mark.parametrize("name", ["profile", "code"])
def test_a_local_module_may_have_the_name_of_a_standard_one(
    code: Code, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, name, raising=False)
    first = code({"net.py": f"import {name}\n", f"{name}.py": "SCALE = 1\n"})
    assert first != code({f"{name}.py": "SCALE = 2\n"})


def test_a_key_imports_nothing(code: Code) -> None:
    net = "def rarely():\n    from boom.sub import y\n    return y\n"
    package = {"boom/__init__.py": "raise RuntimeError('imported')\n", "boom/sub.py": "y = 1\n"}
    first = code({"net.py": net} | package)
    assert "boom" not in sys.modules
    assert first != code({"boom/sub.py": "y = 2\n"})


def test_code_is_the_same_before_and_after_it_is_imported(code: Code) -> None:
    files = {"net.py": "import pack\n", "pack/__init__.py": "from .core import SIZE\n"}
    first = code(files | {"pack/core.py": "SIZE = 1\n"})
    other = code({"pack/core.py": "SIZE = 2\n"})
    assert first != other
    importlib.import_module("net")
    assert code({}) == other
    for name in ("net", "pack", "pack.core"):
        del sys.modules[name]


def test_a_module_that_stands_in_for_another_of_its_name_is_refused(
    code: Code, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code({"net.py": "import helper\n", "helper.py": "SIGN = 1\n", "second/helper.py": "SIGN = 2\n"})
    importlib.import_module("helper")
    assert code({})
    monkeypatch.syspath_prepend(tmp_path / "second")
    with pytest.raises(UserError, match="two modules are named 'helper'"):
        code({})
    del sys.modules["helper"]
