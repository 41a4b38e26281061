"""References: each name has its papers, each paper its facts, and a run those that it used."""

import inspect
import re
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from attacks.libraries import foolbox, torchattacks
from attacks.problem import Problem
from benchmark.data.variants import VARIANTS
from benchmark.export import citations
from benchmark.export.bibliography import bibliography, cited, keys_of, references
from benchmark.export.exported_run import ExportedRun
from benchmark.spec.registry import ATTACKS, DATASETS, DEFENSES, Registry
from defenses import External
from defenses.recipes.methods import METHODS
from defenses.verification import Method
from tests.benchmark.small import Returning, evaluate_small

ROOT = Path(__file__).parents[3]
# The attacks of libraries that are from no paper.
NO_PAPER = {"GN", "UPGD", "VANILA"}


def _fields(key: str) -> dict[str, str]:
    entry = references()[key]
    return dict(re.findall(r"^  (\w+) *= \{(.*)\},$", entry, re.M))


@pytest.mark.parametrize(
    ("registry", "known"),
    [
        (ATTACKS, citations.ATTACKS),
        (DEFENSES, citations.DEFENSES),
        (DATASETS, citations.DATASETS),
    ],
    ids=lambda value: getattr(value, "plural", ""),
)
def test_whatever_is_registered_has_an_entry(registry: Registry, known: Any) -> None:
    assert set(known) == set(registry._builtin)


def test_options_sources_proofs_and_variants_exist() -> None:
    assert {value for option, value in citations.OPTIONS if option == "method"} == set(METHODS)
    assert set(citations.PROOFS) == set(get_args(Method))
    assert set(citations.VARIANTS) <= set(VARIANTS)
    assert all(hasattr(External, source) for source in citations.SOURCES)
    assert {name for name, _ in citations.PARTS} <= set(citations.ATTACKS)


def test_each_reference_is_of_something_and_each_key_has_one() -> None:
    tables = [value for name, value in vars(citations).items() if name.isupper()]
    used = {
        key
        for table in tables
        for keys in (table.values() if isinstance(table, dict) else [table])
        for key in keys
    }
    assert used == set(references())


@pytest.mark.parametrize("key", references())
def test_references_are_whole(key: str) -> None:
    entry, fields = references()[key], _fields(key)
    assert {"author", "title", "year"} <= set(fields)
    assert entry.count("{") == entry.count("}")
    assert entry.isascii()
    assert "@" not in entry[1:]
    year = re.findall(r"\d{4}", key)
    assert year in ([], [fields["year"]])
    if year:  # the key begins with the first author
        first = re.sub(r"\\.|[{}\W]", "", fields["author"].split(",")[0]).lower()
        assert first.startswith(re.split(r"\d", key)[0][:5]), first


def test_what_cites_bestattack_is_what_its_citation_file_says() -> None:
    itself, said = _fields("bestattack"), yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert itself["title"] == said["title"]
    assert itself["year"] == str(said["date-released"].year)
    assert itself["note"] == f"Software, version {said['version']}"
    assert itself["author"] == "{" + said["authors"][0]["name"] + "}"


def _arxiv(cls: type) -> list[str]:
    """The numbers of papers on arXiv in a docstring."""
    return re.findall(r"arxiv\.org/abs/([\d.]+)", inspect.getdoc(cls) or "")


@pytest.mark.parametrize("name", torchattacks.available())
def test_attacks_of_torchattacks_cite_what_their_docstrings_do(name: str) -> None:
    keys = citations.TORCHATTACKS.get(name, ())
    assert _arxiv(torchattacks._classes()[name])[:1] == [_fields(key)["eprint"] for key in keys]
    assert bool(keys) != (name in NO_PAPER)


def _of_foolbox(name: str) -> tuple[str, ...]:
    return next((keys for part, keys in citations.FOOLBOX.items() if part in name), ())


def test_attacks_of_foolbox_cite_what_their_docstrings_do() -> None:
    classes, usable = foolbox._classes(), foolbox.available()
    assert all(any(part in name for name in classes) for part in citations.FOOLBOX)
    for name, cls in classes.items():
        assert _of_foolbox(name) == _of_foolbox(cls.__name__), name  # short names
        said = _arxiv(cls)
        # One names the address of another paper there.
        if said and cls.__name__ in usable and name != "InversionAttack":
            assert [_fields(key)["eprint"] for key in _of_foolbox(name)] == said[:1], name


def test_a_run_cites_exactly_what_it_used(run: Path) -> None:
    exported = ExportedRun.of(run)
    assert cited(exported.reports, "digits") == {
        "bestattack": ("bestattack",),
        "data digits": ("alpaydin1998optical", "pedregosa2011scikit"),
        "defense vanilla": (),
        "defense l2nnn": ("qian2019l2nnn",),
        "attack pgd": ("madry2018towards",),
        "attack targeted": ("croce2020reliable",),
        "attack cw": ("carlini2017towards",),
        "attack foolbox": ("rauber2017foolbox", "rauber2020foolbox", "madry2018towards"),
    }
    text = exported.bibtex()
    keys = re.findall(r"^@\w+\{(\w+),", text, re.M)
    assert keys == keys_of(cited(exported.reports, "digits"))
    assert "% attack pgd, attack foolbox\n@inproceedings{madry2018towards" in text
    assert rf"\citep{{{', '.join(keys)}}}" in exported.latex()


def _identity(kind: str, name: str, parts: Any = None, **options: Any) -> dict[str, Any]:
    inner = {"name": name, "version": 1, "options": options} | ({"parts": parts} if parts else {})
    return {"defense": {"recipe": inner}} if kind == "defense" else {"attack": inner}


@pytest.mark.parametrize(
    ("norm", "identity", "keys"),
    [
        ("l2", _identity("attack", "strong", quick=True), ()),
        ("linf", _identity("attack", "strong", quick=False),
         ("andriushchenko2020square", "chen2020rays", "rony2019decoupling")),
        ("l1", _identity("attack", "apgd"), ("croce2020reliable", "croce2021mind")),
        ("l2", _identity("attack", "pgd", objective="probability-margin"),
         ("madry2018towards", "xie2024million")),
        ("l2", _identity("attack", "transfer", source=_identity("defense", "l2nnn")["defense"],
                         base=_identity("attack", "ddn")["attack"]),
         ("qian2019l2nnn", "qian2020robin", "rony2019decoupling")),
        ("l2", _identity("defense", "robin", method="mart"),
         ("qian2020robin", "wang2020improving")),
        ("l2", _identity("defense", "external", timm="resnet18", onnx=None), ("wightman2019timm",)),
        ("l2", _identity("defense", "hybrid", parts={
            "otherwise": _identity("defense", "trades")["defense"]["recipe"]}),
         ("qian2019l2nnn", "zhang2019theoretically")),
    ],
)  # fmt: skip
def test_whatever_is_within_is_cited_too(
    norm: str, identity: dict[str, Any], keys: tuple[str, ...]
) -> None:
    report = evaluate_small(norm=norm)
    (label,) = report.attacks
    note = report.cells[label].note
    report.cells[label].close({**note, "identity": identity})
    report.cells["natural"].close({"identity": {}})
    expected = {
        *keys,
        *citations.ITSELF,
        *citations.DATASETS["mnist"],
        *citations.DATASETS["mnist"],
    }
    assert keys_of(cited([report], "mnist")) == sorted(expected)


def test_what_users_bring_is_named_in_a_comment() -> None:
    report = evaluate_small(attacks=[Returning(_clean)])
    text = bibliography([report], "npz=mine@home.npz/scale=255")
    assert "attack Returning" in text
    comment = text.splitlines()[-1]
    assert comment.startswith("% No reference is known for: ")
    assert "npz=mine(at)home.npz/scale=255" in comment
    assert "@" not in comment


def _clean(problem: Problem) -> Any:
    return problem.x


def test_variants_that_papers_made_are_cited() -> None:
    report = evaluate_small()
    assert "ding2019sensitivity" in keys_of(cited([report], "mnist/pair=4-9/smooth=3"))
    assert "ding2019sensitivity" not in keys_of(cited([report], "mnist/pair=4-9"))
