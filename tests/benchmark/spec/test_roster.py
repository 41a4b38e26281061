"""The roster: defenses in order, each with what it is made of, and what is refused in one line."""

from pathlib import Path
from typing import Any

import pytest

import defenses
from attacks import PGD
from benchmark import UserError
from benchmark.spec.components import Component
from benchmark.spec.registry import DEFENSES
from benchmark.spec.roster import Roster, configured, enrol
from benchmark.spec.run_spec import make_spec
from defenses import SavedModelError, Vanilla

VANILLA = {"name": "vanilla", "label": "plain", "epochs": 1}
GNB = {"name": "gnb", "label": "derived", "source": "plain"}


def _enrol(*written: Any) -> Roster:
    return enrol([Component.model_validate(one) for one in written])


def _refusal(*written: Any) -> str:
    with pytest.raises(UserError) as error:
        _enrol(*written)
    assert "\n" not in str(error.value)
    return str(error.value)


def _saved(folder: Path) -> str:
    recipe = Vanilla(epochs=0)
    model = defenses.initialise(recipe, (1, 2, 2), 2, 0, {})
    card = {"component": {"name": "vanilla", "options": {"epochs": 0}}}
    defenses.save(folder, model, card | {"shape": [1, 2, 2], "classes": 2, "seed": 0})
    return f"saved:{folder}"


def test_defenses_stand_in_the_order_of_the_run_by_their_labels() -> None:
    roster = _enrol("vanilla/epochs=3", VANILLA, "gnb/source=plain", "l2nnn")
    assert list(roster) == ["vanilla/epochs=3", "plain", "gnb/source=plain", "l2nnn"]
    assert all(member.label == label for label, member in roster.items())
    assert roster["vanilla/epochs=3"].recipe == Vanilla(epochs=3)
    assert roster["plain"].recipe == Vanilla(epochs=1)


def test_a_derived_defense_knows_what_it_is_made_of() -> None:
    hybrid = {"name": "hybrid", "of": "l2nnn", "otherwise": "plain", "threshold": 0.5}
    roster = _enrol("l2nnn", VANILLA, hybrid, GNB)
    assert roster["plain"].made_of == {}
    assert roster["hybrid/of=l2nnn/otherwise=plain/threshold=0.5"].made_of == {
        "of": "l2nnn",
        "otherwise": "plain",
    }
    assert roster["derived"].made_of == {"source": "plain"}


def test_a_defense_is_made_of_one_above_it() -> None:
    wrong = "defense 'derived': source="
    assert _refusal(GNB, VANILLA) == f"{wrong}'plain' is below it: move it up"
    itself = GNB | {"source": "derived"}
    assert _refusal(itself) == f"{wrong}'derived' is itself: name saved:FOLDER"
    assert _refusal(VANILLA, itself) == (f"{wrong}'derived' is itself: name plain or saved:FOLDER")
    assert _refusal(VANILLA, GNB | {"source": "plian"}) == (
        f"{wrong}'plian' is unknown: did you mean 'plain'?"
    )


def test_no_two_are_made_of_each_other() -> None:
    one = GNB | {"label": "one", "source": "two"}
    two = GNB | {"label": "two", "source": "one"}
    assert _refusal(one, two) == "defense 'one': source='two' is below it: move it up"
    assert _refusal(two, one) == "defense 'two': source='one' is below it: move it up"


def test_two_defenses_of_one_label_never_reach_the_roster() -> None:
    values = {"data": "digits", "eps": 1.0, "suite": "quick"}
    with pytest.raises(UserError) as error:
        make_spec(values | {"defenses": [VANILLA, VANILLA | {"epochs": 2}]})
    assert str(error.value) == "the spec is not valid: defense 'plain' is named twice"


def test_a_saved_model_needs_no_recipe_and_may_be_a_part(tmp_path: Path) -> None:
    name = _saved(tmp_path / "model")
    roster = _enrol(name, GNB | {"source": name})
    assert (roster[name].recipe, roster[name].folder) == (None, tmp_path / "model")
    assert roster["derived"].made_of == {"source": name}
    assert roster["derived"].folder is None


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    nothing = f"saved:{tmp_path / 'nothing'}"
    with pytest.raises(SavedModelError):
        _enrol(nothing)
    refusal = _refusal(GNB | {"source": nothing})
    assert refusal.startswith(f"defense 'derived': source={nothing!r}: ")


def test_what_is_no_recipe_is_refused() -> None:
    DEFENSES.add("attack", PGD, "here")
    with pytest.raises(UserError, match=r"^defense 'attack' is not a defenses\.Recipe$"):
        configured(Component.model_validate("attack"))
