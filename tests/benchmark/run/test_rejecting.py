"""Models that may reject images have two rows in the table of a run, which verify."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmark.data.sets import load_dataset
from benchmark.direct.evaluate import evaluate
from benchmark.errors import UserError
from benchmark.models.trained import load_saved
from benchmark.run.run_folder import models_of, read_manifest
from benchmark.run.runner import run
from benchmark.run.verify import verify
from benchmark.spec.run_spec import make_spec
from defenses.foreign.external import External

CODE = """
import torch
from torch import nn
from torch.nn import functional as F


class Cautious(nn.Module):
    '''It compares images with the mean of each digit; at "place" it has the class of rejection.'''

    def __init__(self, place: int = 10, wide: int = 1) -> None:
        super().__init__()
        self.wide = wide
        from sklearn.datasets import load_digits

        x, y = load_digits(return_X_y=True)
        x, y = torch.tensor(x / 16, dtype=torch.float32), torch.tensor(y)
        means = torch.stack([x[y == label].mean(0) for label in range(10)])
        self.last, self.place = nn.Linear(64, 10), place
        with torch.no_grad():
            self.last.weight.copy_(2 * means)
            self.last.bias.copy_(-means.square().sum(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = self.last(x.flatten(1))
        # It rejects what it is in doubt about.
        reject = logits.topk(2, dim=1).values.sum(1, keepdim=True) / 2 + 0.3
        rejects = reject.expand(-1, self.wide)
        return torch.cat([logits[:, : self.place], rejects, logits[:, self.place :]], 1)


def plain() -> nn.Module:
    return Cautious().last
"""
N = 60


def _defense(home: Path, **options: Any) -> dict[str, Any]:
    path = home / "cautious.py"
    path.write_text(CODE)
    return {"name": "external", "python": f"{path}:Cautious", "mean": [0], "std": [1], **options}


def _spec(home: Path, **options: Any) -> Any:
    return make_spec(
        {
            "norm": "linf", "eps": 0.1, "samples": N, "attacks": ["pgd/steps=5"],
            "defenses": [_defense(home, label="cautious", **options)],
        }
    )  # fmt: skip


@pytest.mark.parametrize("place", [10, 0, 4])
def test_a_run_has_a_row_for_either_reading(place: int, tmp_path: Path) -> None:
    spec = _spec(tmp_path, reject=place, kwargs={"place": place})
    home = tmp_path / "run"
    strict, lenient = run(spec, home, None, False, lambda line: None)
    assert (strict.name, lenient.name) == ("cautious", "cautious, may reject")
    assert strict.natural == lenient.natural
    assert strict.best_attack < lenient.best_attack < strict.natural

    # They are those of `evaluate`.
    data = load_dataset("digits").first("test", N)
    rows = json.loads((home / "run.json").read_text())["rows"]
    model = load_saved(home / rows[0]["model"]).model
    report = evaluate(model, data, norm="linf", eps=0.1, attacks=["pgd/steps=5"], reject=10)
    assert report.rejecting is not None
    for of_run, alone in ((strict, report), (lenient, report.rejecting)):
        assert of_run.best_attack == alone.best_attack
        assert of_run.natural == alone.natural

    # All of it is found again.
    replayed = verify(home, None, "cpu")
    assert not replayed.problems
    assert not replayed.missing
    assert [r.best_attack for r in replayed.reports] == [strict.best_attack, lenient.best_attack]
    manifest = json.loads((home / "run.json").read_text())
    rows = manifest["rows"]
    manifest["rows"] = rows[:1]
    (home / "run.json").write_text(json.dumps(manifest))
    assert "cautious, may reject: not measured" in verify(home, None, "cpu").missing
    rows[1]["may_reject"] = False
    (home / "run.json").write_text(json.dumps(manifest | {"rows": rows}))
    assert verify(home, None, "cpu").problems


def test_labels_that_are_predictions_cannot_be_that_of_rejection(tmp_path: Path) -> None:
    spec = _spec(tmp_path, reject=10).model_copy(update={"labels": "predictions"})
    with pytest.raises(UserError, match="class 10 is that of rejected images"):
        run(spec, tmp_path / "run", None, False, lambda line: None)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"reject": -1}, "reject must be the number of a class of the model"),
        ({"reject": 1, "binary": True}, "reject must be the number of a class of the model"),
        ({"reject": 1, "classes": [0, 1]}, "reject must be the number of a class of the model"),
        ({"reject": 11, "classes": list(range(10))}, "there is no class 11"),
        ({"reject": 10, "kwargs": {"wide": 2}}, r"gives \(1, 12\) for an image"),
        ({"reject": 10, "classes": list(range(9))}, "classes name 9, and the data has 10"),
    ],
)
def test_what_is_no_class_of_rejection_gets_one_line(
    options: dict[str, Any], line: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=line):
        run(_spec(tmp_path, **options), tmp_path / "run", None, False, lambda line: None)


def test_classes_of_the_data_and_rejection_are_chosen_together(tmp_path: Path) -> None:
    given = _defense(tmp_path, classes=(7, 2), reject=10)
    del given["name"]
    given |= {"mean": (0.0,), "std": (1.0,)}
    model = External(**given).build((1, 8, 8), 2)
    x = load_dataset("digits").first("test", 5).x[:]
    whole = External(python=given["python"], mean=(0.0,), std=(1.0,)).build((1, 8, 8), 11)
    with torch.no_grad():
        assert model(x).equal(whole(x)[:, [7, 2, 10]])
    assert model.reject == 2


def test_a_study_takes_a_model_once(tmp_path: Path) -> None:
    home = tmp_path / "run"
    run(_spec(tmp_path, reject=10), home, None, False, lambda line: None)
    assert list(models_of(home, read_manifest(home))) == ["cautious"]


def test_no_label_is_that_of_a_second_row(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no label may end in ', may reject'"):
        make_spec({"eps": 0.1, "defenses": [{"name": "vanilla", "label": "it, may reject"}]})


def test_both_rows_stand_under_each_of_several_threats(tmp_path: Path) -> None:
    given = {"samples": 20, "attacks": ["pgd/steps=2"], "threats": ["linf:0.1", "l2:0.3"]}
    spec = make_spec(given | {"defenses": [_defense(tmp_path, label="cautious", reject=10)]})
    home = tmp_path / "run"
    names = [report.name for report in run(spec, home, None, False, lambda line: None)]
    assert names == ["cautious", "cautious, may reject"] * 2
    replayed = verify(home, None, "cpu")
    assert not replayed.problems
    assert not replayed.missing


def test_the_second_row_holds_by_its_own_reading(tmp_path: Path) -> None:
    home = tmp_path / "run"
    run(_spec(tmp_path, reject=10), home, None, False, lambda line: None)
    strict, lenient = json.loads((home / "run.json").read_text())["rows"]
    # Points that are rejected, in place of those that are misclassified.
    for block in (home / "cells" / strict["cells"]["pgd/steps=5"]).glob("*.npz"):
        shutil.copy(block, home / "cells" / lenient["cells"]["pgd/steps=5"] / block.name)
    assert any("do not hold" in line for line in verify(home, None, "cpu").problems)


def test_rows_of_other_names_are_found(tmp_path: Path) -> None:
    words = {"samples": 20, "eps": 0.1, "attacks": ["pgd/steps=2"]}
    weak = {"name": "vanilla", "epochs": 0, "label": "weak"}
    spec = make_spec(words | {"defenses": [_defense(tmp_path, label="strong", reject=10), weak]})
    home = tmp_path / "run"
    run(spec, home, None, False, lambda line: None)
    manifest = json.loads((home / "run.json").read_text())
    strict, lenient, other = manifest["rows"]
    for rows in (
        [strict | {"defense": "weak"}, other | {"defense": "strong"}],
        [lenient | {"defense": "strong"}, other],
        [strict | {"defense": "stronger"}, other],
    ):
        (home / "run.json").write_text(json.dumps(manifest | {"rows": rows}))
        problems = verify(home, None, "cpu").problems
        assert any("another defense" in line or "of that name" in line for line in problems)
