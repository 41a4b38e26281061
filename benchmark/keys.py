"""What tells one configured object, and one judge, from another: cells are named by it."""

import dataclasses
import hashlib
import inspect
import sys
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any
from weakref import WeakKeyDictionary

from attacks import threat
from benchmark.judge import evaluator, subject


def _judge() -> str:
    sources = [Path(module.__file__ or "").read_bytes() for module in (evaluator, subject, threat)]
    return hashlib.sha256(b"".join(sources)).hexdigest()[:16]


# A hash of the source that decides verdicts, so that no cell outlives the judge it is from; taken
# now, because an edit while a run goes on does not change the code that runs.
JUDGE = _judge()


def identify_object(thing: object) -> dict[str, Any]:
    """What determines a configured object's behaviour: its class, its options, and the source files
    of the class, its bases and what they use. Options that are such objects are identified so."""
    cls = type(thing)
    options: dict[str, Any] = {}
    if dataclasses.is_dataclass(thing):
        for field in dataclasses.fields(thing):
            value = getattr(thing, field.name)
            configured = dataclasses.is_dataclass(value) and not isinstance(value, type)
            options[field.name] = identify_object(value) if configured else repr(value)
    return {
        "class": f"{cls.__module__}.{cls.__qualname__}",
        "options": options,
        "source": _source(cls),
    }


def _source(cls: type) -> str:
    """A hash of the source files behind a class: its own and its bases', and what these use of its
    package, of `attacks` and of `defenses`."""
    packages = {cls.__module__.partition(".")[0], "attacks", "defenses"}
    waiting = [base.__module__ for base in cls.__mro__]
    files: dict[str, bytes] = {}
    while waiting:
        name = waiting.pop()
        module = sys.modules.get(name)
        # Versions name torch, not its files.
        if name in files or module is None or name.partition(".")[0] not in packages - {"torch"}:
            continue
        files[name] = _text(module)
        used = (
            getattr(value, "__module__", None) or getattr(value, "__name__", "")
            for value in vars(module).values()
        )
        waiting += [str(other) for other in used]
    digest = hashlib.sha256()
    for name, content in sorted(files.items()):
        digest.update(name.encode() + content)
    return digest.hexdigest()[:16]


# Read once, because an edit while a run goes on does not change the code that runs.
_texts: WeakKeyDictionary[ModuleType, bytes] = WeakKeyDictionary()


def _text(module: ModuleType) -> bytes:
    """A module's source file, as it was when first asked for; empty where there is none."""
    if module not in _texts:
        _texts[module] = b""
        with suppress(OSError, TypeError):  # built in, or typed in
            _texts[module] = Path(inspect.getsourcefile(module) or "").read_bytes()
    return _texts[module]
