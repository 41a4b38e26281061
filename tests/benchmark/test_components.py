"""The grammar of names with options, and how options are checked."""

from dataclasses import dataclass
from typing import Any

import pytest
from pydantic import ValidationError

from attacks import PGD, CarliniWagner
from benchmark.components import Component, configure
from benchmark.errors import UserError
from benchmark.registry import ATTACKS, DEFENSES, Registry


def _read(value: object) -> Component:
    return Component.model_validate(value)


@pytest.mark.parametrize(
    ("text", "name", "options"),
    [
        ("pgd", "pgd", {}),
        ("pgd/steps=40", "pgd", {"steps": "40"}),
        ("cw/minimize", "cw", {"minimize": True}),
        ("cw/steps=40/minimize/confidence=0.5", "cw", {"steps": "40", "minimize": True}
         | {"confidence": "0.5"}),
        ("pgd/objective=", "pgd", {"objective": ""}),
        ("external/model=module:Net=2", "external", {"model": "module:Net=2"}),
        ("saved:a/b=c/d", "saved:a/b=c/d", {}),
    ],
)  # fmt: skip
def test_a_name_with_options_is_read(text: str, name: str, options: dict[str, Any]) -> None:
    assert _read(text) == Component(name=name, options=options)


def test_a_mapping_says_the_same_as_text() -> None:
    text = _read("pgd/steps=40/random_start=false")
    mapping = _read({"name": "pgd", "steps": 40, "random_start": False})
    nested = _read({"name": "pgd", "options": {"steps": 40, "random_start": False}})
    assert mapping == nested
    assert configure(ATTACKS, text) == configure(ATTACKS, mapping)
    assert configure(ATTACKS, text) == PGD(steps=40, random_start=False)


@pytest.mark.parametrize("value", [{"steps": 3}, {"name": 3}, 3, None, ["pgd"]])
def test_what_has_no_name_is_refused(value: object) -> None:
    with pytest.raises(ValidationError):
        _read(value)


@pytest.mark.parametrize(
    ("value", "label"),
    [
        ("pgd", "pgd"),
        ("pgd/steps=40/minimize", "pgd/steps=40/minimize"),
        ({"name": "pgd", "steps": 40, "minimize": True}, "pgd/steps=40/minimize"),
        ({"name": "pgd", "minimize": False}, "pgd/minimize=False"),
        ("saved:models/mine", "saved:models/mine"),
        ({"name": "pgd", "steps": 40, "label": "PGD-40"}, "PGD-40"),
    ],
)
def test_the_label_is_the_name_and_the_options_given(value: object, label: str) -> None:
    assert _read(value).label == label


def test_options_become_what_the_dataclass_declares() -> None:
    attack = configure(ATTACKS, _read("cw/steps=40/learning_rate=1e-2/minimize/abort_early=no"))
    assert attack == CarliniWagner(steps=40, learning_rate=0.01, minimize=True, abort_early=False)
    assert type(attack.steps) is int
    assert type(attack.learning_rate) is float
    assert configure(ATTACKS, _read("pgd")) == PGD()
    assert configure(DEFENSES, _read("pgd-at/eps=0.25")).eps == 0.25


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("pdg", "unknown attack 'pdg': did you mean 'pgd'?"),
        ("pgd/step=4", "attack 'pgd' has no option 'step': did you mean 'steps'?"),
        (
            "pgd/zzz=4",
            "attack 'pgd' has no option 'zzz': "
            "it has steps, step_size, restarts, random_start, objective",
        ),
        ("pgd/", "attack 'pgd' has no option '': "
         "it has steps, step_size, restarts, random_start, objective"),
        (
            "pgd/steps=many",
            "attack 'pgd/steps=many': steps: Input should be a valid integer, "
            "unable to parse string as an integer",
        ),
        ("pgd/steps=4.5", "attack 'pgd/steps=4.5': steps: Input should be a valid integer, "
         "unable to parse string as an integer"),
        ("pgd/steps=0", "attack 'pgd/steps=0': pgd: steps and restarts must be at least 1"),
        (
            "pgd/objective=loss",
            "attack 'pgd/objective=loss': pgd: unknown objective 'loss': "
            "use one of cross-entropy, margin, dlr",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_configured_gets_one_line(text: str, line: str) -> None:
    with pytest.raises(UserError) as error:
        configure(ATTACKS, _read(text))
    assert str(error.value) == line


def test_an_entry_that_is_no_dataclass_gets_one_line() -> None:
    @dataclass(frozen=True)
    class Fine:
        size: int = 1

    names = Registry("attack", "attacks", {"fine": Fine, "instance": Fine(), "function": len})
    assert configure(names, _read("fine/size=2")) == Fine(2)
    for name in ("instance", "function"):
        with pytest.raises(UserError, match=f"^attack '{name}' is not a dataclass$"):
            configure(names, _read(name))
