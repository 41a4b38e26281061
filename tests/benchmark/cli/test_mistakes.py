"""Mistakes on the command line, and a full disk, get one clear line."""

import errno
import io
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, cast

import pytest

from benchmark.judge import records
from tests.benchmark.conftest import Cli

# The command line.

WORDS = ("run", "--quiet", "--samples", 20, "--block", 8, "--eps", 0.5)


ATTACKED = (*WORDS, "--defense", "vanilla/epochs=0", "--attack", "pgd/steps=2")


PLUGIN = """
import torch

from benchmark.data.dataset import Dataset, Split
from benchmark.data.sets import digits

ten = digits(None)


def data(change):
    def load(part):
        split = ten.test
        return change(split.x, split.y)

    return lambda root: Dataset("mine", ten.labels, ten.shape, load)


DATASETS = {
    "bright": data(lambda x, y: Split(x * 1.5, y)),
    "bytes": data(lambda x, y: Split((x * 255).to(torch.uint8), y)),
    "nan": data(lambda x, y: Split(x / 0, y)),
    "labels": data(lambda x, y: Split(x, y + 1)),
}


def net(classes=10, scale=1, nan=False, kind=None):
    class Net(torch.nn.Linear):
        def forward(self, x):
            logits = super().forward(x.flatten(1)) * scale
            if kind:
                return {"logits": logits} if kind == "dict" else (logits, logits)
            return logits / 0 if nan else logits

    return Net(64, classes)
"""


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("run", "nowhere.yaml"), "cannot read the spec nowhere.yaml: No such file or directory"),
        (
            (*WORDS, "--attack", "pgd"),
            "the spec is not valid: give defenses, in the spec or as --defense",
        ),
        ((*ATTACKED, "--attack", "pdg"), "unknown attack 'pdg': did you mean 'pgd'?"),
        ((*ATTACKED, "--defense", "vanila"), "unknown defense 'vanila': did you mean 'vanilla'?"),
        ((*ATTACKED, "--data", "digit"), "unknown data set 'digit': did you mean 'digits'?"),
        ((*ATTACKED, "--suite", "quik"), "unknown suite 'quik': did you mean 'quick'?"),
        (
            (*ATTACKED, "--norm", "l0"),
            "the spec is not valid: norm: Input should be 'l2', 'linf' or 'l1'",
        ),
        (
            (*ATTACKED, "--norm", "linf", "--attack", "boundary"),
            "attack 'boundary' runs under l2 only",
        ),
        ((*ATTACKED, "--eps", "0"), "the spec is not valid: eps: Input should be greater than 0"),
        (
            (*ATTACKED, "--eps", "1e999"),
            "the spec is not valid: eps: '1e999' is not a number or a fraction such as 8/255",
        ),
        ((*ATTACKED, "--samples", 356), "digits has 355 test images, not 356: lower samples"),
        ((*ATTACKED, "--data", "digits/pair=3-x"), "digits: unknown label 'x'"),
        ((*ATTACKED, "--defense", "saved:no/where"), "no saved model in "),
        (
            (*ATTACKED, "--defense", "pgd-at/eps=0"),
            "defense 'pgd-at/eps=0': eps must be above 0 and finite, not 0.0",
        ),
        (
            (*ATTACKED, "--data", "bright"),
            "mine: the test images are not float32 in [0, 1]",
        ),
        ((*ATTACKED, "--data", "bytes"), "mine: the test images are not float32 in [0, 1]"),
        ((*ATTACKED, "--data", "nan"), "mine: the test images are not float32 in [0, 1]"),
        ((*ATTACKED, "--data", "labels"), "mine: the test labels are not int64 from 0 to 9"),
        (
            ("train", "digits", "vanilla/epochs=0/epochs=1", "--out", "m"),
            "the defense is not valid: 'vanilla/epochs=0/epochs=1' gives an option twice",
        ),
        (("train", "digits", "vanila", "--out", "m"), "unknown defense 'vanila': did you mean"),
        (
            ("train", "digits", "vanilla", "--out", "m", "--eps", "0"),
            "eps must be above 0 and finite, not 0.0",
        ),
        (
            ("train", "digits", "pgd-at", "--out", "m"),
            "defense 'pgd-at': adversarial training: give norm and eps",
        ),
        (("report", "nowhere"), "nowhere holds no run with results: name the folder of a run"),
        (("verify", "nowhere"), "nowhere holds no run with results: name the folder of a run"),
    ],
)
def test_a_mistake_is_one_line(
    tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, words: tuple[object, ...], line: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(PLUGIN)
    plugin = () if words[0] in ("report", "verify") else ("--plugin", "mine.py")
    ended = cli(*words, *plugin)
    assert (ended.status, ended.out, ended.err.count("\n")) == (1, "", 1)
    assert ended.err.startswith(f"bestattack: {line}")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("lst",), "No such command 'lst'."),
        (("list", "attack"), "Invalid value for 'kind'"),
        ((*ATTACKED, "--mode", "both"), "Invalid value for '--mode'"),
        ((*ATTACKED, "--samples", "few"), "Invalid value for '--samples'"),
        ((*ATTACKED, "--sample", 3), "No such option: --sample"),
        (("verify",), "Missing argument"),
    ],
)
def test_a_mistyped_command_is_one_line(cli: Cli, words: tuple[object, ...], line: str) -> None:
    ended = cli(*words)
    assert (ended.status, ended.out, ended.err.count("\n")) == (2, "", 1)
    assert ended.err.lower().startswith(f"bestattack: {line}".lower())


def test_without_words_the_command_explains_itself(cli: Cli) -> None:
    ended = cli()
    assert (ended.status, ended.err) == (0, "")
    assert all(word in ended.out for word in ("run", "train", "list", "report", "verify"))
    assert cli("run", "--help").status == 0


@pytest.mark.parametrize(
    ("option", "line"),
    [
        ("kwargs: {classes: 7}", "gives (1, 7) for an image, not logits (1, 10)"),
        (
            "kwargs: {kind: dict}",
            "gives a dict with 'logits' for an image, not logits (1, 10): say where they are by "
            "output=...",
        ),
        ("kwargs: {kind: tuple}", "gives a tuple for an image, not logits (1, 10): "),
        ("kwargs: {nan: true}", "the model gives NaN or infinite logits on all of the first "),
        ("kwargs: {scale: text}", "TypeError: "),
        ("weights: nowhere.pt", "nowhere.pt"),
    ],
)
def test_a_foreign_model_that_cannot_be_used_is_one_line(
    tmp_path: Path, cli: Cli, option: str, line: str
) -> None:
    (tmp_path / "mine.py").write_text(PLUGIN)
    spec = tmp_path / "spec.yaml"
    model = f"{tmp_path}/mine.py:net"
    spec.write_text(f"defenses: [{{name: external, model: '{model}', {option}}}]")
    ended = cli(*WORDS[:1], spec, *WORDS[1:], "--attack", "pgd", "--out", tmp_path / "run")
    assert (ended.status, ended.out, ended.err.count("\n")) == (1, "", 1)
    assert ended.err.startswith("bestattack: ")
    assert line in ended.err


class FullDisk(io.RawIOBase):
    def writable(self) -> bool:
        return True

    def write(self, data: object, /) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_is_one_line_and_what_was_measured_is_kept(
    tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Three blocks of clean records have room, and two of the attack's.
    write, room, folder = records.write_atomically, [5], tmp_path / "run"
    words = (*WORDS, "--samples", 24, "--defense", "vanilla/epochs=2", "--attack", "pgd/steps=2")
    words += ("--out", folder)

    def full(path: Path, content: Callable[[BinaryIO], object]) -> None:
        room[0] -= path.suffix == ".npz"
        if room[0] < 0:
            content(cast(BinaryIO, FullDisk()))
        write(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(records, "write_atomically", full)
        ended = cli(*words)
    assert (ended.status, ended.out, ended.err.count("\n")) == (1, "", 1)
    assert ended.err.startswith("bestattack: vanilla/epochs=2: cannot write ")
    assert ended.err.endswith(
        ": No space left on device; what was measured before is kept: "
        "make room and run the same command again\n"
    )
    kept = {path: path.stat().st_mtime_ns for path in folder.rglob("*.npz")}
    assert len(kept) == 5
    assert [path.name for path in folder.rglob(".*")] == [".lock"]

    assert cli(*words).status == 0
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert len(list(folder.rglob("*.npz"))) == 6
    assert cli("verify", folder).status == 0


@pytest.mark.parametrize("name", ["spec.yaml", "model.safetensors", "run.json", "table.json"])
def test_a_full_disk_is_one_line_wherever_it_is_met(
    tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    # No file can be opened under that name: as a full disk, this is an OSError.
    folder = tmp_path / "run"
    replace = Path.replace

    def fail(self: Path, target: Path) -> Path:
        if Path(target).name == name:
            raise OSError(errno.ENOSPC, "No space left on device", str(target))
        return replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", fail)
        ended = cli(*ATTACKED, "--out", folder)
    assert (ended.status, ended.out, ended.err.count("\n")) == (1, "", 1)
    assert ended.err.startswith("bestattack: ")
    assert "No space left on device" in ended.err
    assert name in ended.err
    assert cli(*ATTACKED, "--out", folder).status == 0


def test_an_attack_of_a_plugin_that_says_too_little_is_one_line(tmp_path: Path, cli: Cli) -> None:
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\n\n\n@dataclass(frozen=True)\nclass Bare:\n"
        "    def __call__(self, problem):\n        return problem.x\n\n\nATTACKS = {'bare': Bare}\n"
    )
    words = (*ATTACKED, "--attack", "bare", "--plugin", tmp_path / "mine.py")
    ended = cli(*words, "--out", tmp_path / "run")
    assert (ended.status, ended.out) == (1, "")
    assert ended.err == (
        "bestattack: attack 'bare' does not say what it is: give it facts = attacks.Facts(family), "
        "where the family is fixed-budget or minimal-norm\n"
    )
