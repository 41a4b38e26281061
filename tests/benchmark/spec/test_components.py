"""The grammar of names with options, and how options are checked."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from attacks import APGD, PGD, Attack, CarliniWagner, Facts
from attacks.wrappers.arms import BestArm
from attacks.wrappers.targeted import Targeted
from attacks.wrappers.transfer import Transfer
from benchmark.errors import UserError
from benchmark.spec.components import Component, configure, read_component
from benchmark.spec.registry import ATTACKS, DEFENSES, Registry


def _read(value: object) -> Component:
    return Component.model_validate(value)


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("nets/a.onnx", "external/onnx=nets/a.onnx"),
        ("external/a.onnx", "external/onnx=a.onnx"),
        ("a.pt2", "external/exported=a.pt2"),
        ("/tmp/a.ts", "external/script=/tmp/a.ts"),
        ("net.py:Net", "external/python=net.py:Net"),
        ("w.safetensors", "external/timm=NETWORK/weights=w.safetensors"),
    ],
)
def test_a_file_of_a_model_alone_is_answered_by_the_form_that_works(text: str, form: str) -> None:
    with pytest.raises(UserError) as error:
        read_component(text, "the defense")
    assert str(error.value) == (
        f"the defense is not valid: {text!r} is the name of a file: write {form}"
    )


def test_options_of_text_hold_numbers_and_mappings() -> None:
    text = "external/timm=resnet18/mean=0.5,0.5/std=1/kwargs={img_size: 16, pool: avg}/pretrained"
    made = configure(DEFENSES, read_component(text, "the defense"))
    assert (made.mean, made.std) == ((0.5, 0.5), (1.0,))
    assert made.kwargs == {"img_size": 16, "pool": "avg"}
    of_spec = {"name": "external", "timm": "resnet18", "mean": 0.5, "std": 1, "pretrained": True}
    assert configure(DEFENSES, read_component(of_spec, "the defense")).mean == (0.5,)
    with pytest.raises(UserError, match="range: write numbers with commas between them"):
        configure(DEFENSES, read_component("external/timm=a/pretrained/range=0-255", "it"))


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
        ("pgd-at/eps=8/255/half", "pgd-at", {"eps": "8/255", "half": True}),
        ("saved:a/b=c/d", "saved:a/b=c/d", {}),
        ("best-arm:pgd/steps=3", "best-arm:pgd", {"steps": "3"}),
        # A source is all that follows: labels and folders hold slashes.
        ("transfer:pgd/steps=3/source=pgd-at/eps=1", "transfer:pgd", {"steps": "3"}
         | {"source": "pgd-at/eps=1"}),
        ("transfer:pgd/source=saved:a/b", "transfer:pgd", {"source": "saved:a/b"}),
    ],
)  # fmt: skip
def test_a_name_with_options_is_read(text: str, name: str, options: dict[str, Any]) -> None:
    assert _read(text) == Component(name=name, options=options)


def test_paths_that_exist_hold_slashes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nets").mkdir()
    for name in ("a.onnx", "b.py"):
        (tmp_path / "nets" / name).touch()
    monkeypatch.chdir(tmp_path)
    assert _read("external/onnx=nets/a.onnx/binary").options == {
        "onnx": "nets/a.onnx", "binary": True
    }  # fmt: skip
    code = {"python": "nets/b.py:net", "epochs": "0"}
    assert _read("external/python=nets/b.py:net/epochs=0").options == code
    assert _read(f"external/python={tmp_path}/nets/b.py:net/epochs=0").options == {
        "python": f"{tmp_path}/nets/b.py:net", "epochs": "0"
    }  # fmt: skip
    assert _read("external/robustbench=Some/cifar10/Linf/pretrained").options == {
        "robustbench": "Some/cifar10/Linf", "pretrained": True
    }  # fmt: skip


def test_a_folder_is_no_model_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("mlp", "vit"):
        (tmp_path / name).mkdir()
    assert _read("external/model=mlp").absolute().options == {"model": "mlp"}
    there = _read("external/transformers=vit").absolute().options
    assert there == {"transformers": str(tmp_path / "vit")}


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
        ("best-arm:cw/steps=3", "best-arm:cw/steps=3"),
        ({"name": "pgd", "steps": [3, 4]}, "pgd/steps=3,4"),
    ],
)
def test_the_label_is_the_name_and_the_options_given(value: object, label: str) -> None:
    assert _read(value).label == label


@pytest.mark.parametrize("value", ["pgd-at/eps=8/255", {"name": "pgd-at", "eps": "8/255"}])
def test_a_budget_may_be_a_fraction(value: object) -> None:
    assert configure(DEFENSES, _read(value)).eps == 8 / 255


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
        ("pgd/steps", "attack 'pgd/steps': give steps a value: steps=..."),
        ("best-arm:pgd/steps", "attack 'best-arm:pgd/steps': give steps a value: steps=..."),
        ("pgd/steps=0", "attack 'pgd/steps=0': pgd: steps and restarts must be at least 1"),
        (
            "pgd/objective=loss",
            "attack 'pgd/objective=loss': pgd: unknown objective 'loss': "
            "use one of cross-entropy, margin, probability-margin, dlr",
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


@dataclass(frozen=True)
class Library:
    attack: str
    options: Mapping[str, Any]

    facts = Facts("fixed-budget", norms=("l2",))

    def __post_init__(self) -> None:
        if self.attack == "Bad":
            raise ValueError("library: no attack 'Bad'")

    def __call__(self, problem: object) -> None: ...


@dataclass(frozen=True)
class Unchecked:
    base: Attack


@pytest.fixture
def _library() -> None:
    ATTACKS.add("library", Library, "here")
    ATTACKS.add("unchecked", Unchecked, "here")


@pytest.mark.usefixtures("_library")
@pytest.mark.parametrize(
    ("text", "attack"),
    [
        ("best-arm:pgd/steps=20", BestArm(PGD(steps=20))),
        # The first that has an option takes it.
        ("targeted:apgd/objective=dlr/classes=3/steps=7",
         Targeted(APGD(steps=7), classes=3, objective="dlr")),
        ("transfer:targeted:pgd/steps=2/classes=1/targeted/source=a",
         Transfer(Targeted(PGD(steps=2), classes=1), source="a", targeted=True)),
        # What a library's attack is given is its own affair.
        ("library:Some/steps=7/any", Library("Some", {"steps": "7", "any": True})),
        ("best-arm:library:Some/steps=7", BestArm(Library("Some", {"steps": "7"}))),
    ],
)  # fmt: skip
def test_a_composed_name_is_the_attack_composed_by_hand(text: str, attack: object) -> None:
    assert configure(ATTACKS, _read(text)) == attack


def test_a_composed_mapping_says_the_same_as_text() -> None:
    mapping = _read({"name": "targeted:pgd", "steps": 4, "classes": 2, "label": "mine"})
    assert configure(ATTACKS, mapping) == configure(
        ATTACKS, _read("targeted:pgd/steps=4/classes=2")
    )
    assert mapping.label == "mine"


@pytest.mark.usefixtures("_library")
@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("bestarm:pgd", "unknown attack 'bestarm': did you mean 'best-arm'?"),
        ("best-arm:pdg", "unknown attack 'pdg': did you mean 'pgd'?"),
        ("best-arm:pgd/stesp=3",
         "attack 'best-arm:pgd' has no option 'stesp': did you mean 'steps'?"),
        ("targeted:pgd/clases=3",
         "attack 'targeted:pgd' has no option 'clases': did you mean 'classes'?"),
        ("best-arm:pgd/base=cw", "attack 'best-arm:pgd' has no option 'base': it has steps, "
         "step_size, restarts, random_start, objective"),
        ("best-arm", "attack 'best-arm' is around another: write 'best-arm:BASE', such as "
         "'best-arm:pgd'"),
        ("best-arm:/steps=3", "attack 'best-arm' is around another: write 'best-arm:BASE', "
         "such as 'best-arm:pgd'"),
        ("library", "attack 'library' is a library: write 'library:NAME'"),
        ("pgd:cw", "attack 'pgd' takes nothing after a colon: write 'pgd'"),
        ("pgd:", "attack 'pgd' takes nothing after a colon: write 'pgd'"),
        ("best-arm:pgd:cw", "attack 'pgd' takes nothing after a colon: write 'pgd'"),
        ("best-arm:pgd/steps=0",
         "attack 'best-arm:pgd/steps=0': pgd: steps and restarts must be at least 1"),
        ("library:Bad", "attack 'library:Bad': library: no attack 'Bad'"),
        ("unchecked:pgd", "attack 'unchecked:pgd' has fields of types that cannot be checked: "
         "give it the __pydantic_config__ of attacks.Wrapper"),
    ],
)  # fmt: skip
def test_a_name_that_is_composed_wrongly_gets_one_line(text: str, line: str) -> None:
    with pytest.raises(UserError) as error:
        configure(ATTACKS, _read(text))
    assert str(error.value) == line


def test_a_saved_source_is_found_from_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    here = _read("transfer:pgd/source=saved:m/x").absolute()
    assert here.options["source"] == f"saved:{tmp_path}/m/x"
    assert here.label == "transfer:pgd/source=saved:m/x"
    assert _read("transfer:pgd/source=m/x").absolute().options["source"] == "m/x"


@pytest.mark.parametrize(
    ("given", "label"),
    [(None, "pgd/steps=3/restarts=2"), ("P", "P steps=3"), ("P steps=3,4", "P steps=3")],
)
def test_one_of_a_series_is_labelled_with_its_value(given: str | None, label: str) -> None:
    options = {"steps": [3, 4], "restarts": 2}
    series = Component(name="pgd", options=options, given_label=given)
    assert series.with_option("steps", 3).label == label


def test_an_option_given_twice_gets_one_line() -> None:
    with pytest.raises(ValidationError, match="gives an option twice"):
        Component.model_validate("pgd/steps=10/steps=20")
