"""What is not right gets one clear line or a flag, and a crash is never robustness."""

import errno
import io
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from attacks import PGD, CarliniWagner, Problem, ThreatModel
from attacks.problem import Family
from benchmark import Report, UserError, evaluate, records
from benchmark.data import load_dataset
from tests.benchmark.conftest import Cli

N = 6
X, Y = torch.full((N, 4), 0.5), torch.zeros(N, dtype=torch.int64)


class Linear(nn.Module):
    """Class 0 where the first pixel is at most 0.6: the closest other point is 0.1 away."""

    def __init__(self, classes: int = 2) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(4, classes))
        self.bias = nn.Parameter(torch.full((classes,), -9.0))
        with torch.no_grad():
            self.weight[0, 0], self.bias[0], self.bias[1] = -1.0, 0.6, 0.0

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


class Wrapped(nn.Module):
    """A model whose logits are changed by a function."""

    def __init__(self, change: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.inner, self.change = Linear(), change

    def forward(self, x: Tensor) -> Any:
        return self.change(self.inner(x))


@dataclass(frozen=True)
class Returning:
    """An attack that returns what a function makes of its problem."""

    points: Callable[[Problem], Any]
    family: Family = "fixed-budget"
    norms: ClassVar = ("l2", "linf")

    def __call__(self, problem: Problem) -> Any:
        return self.points(problem)


def _evaluate(model: nn.Module | None = None, **options: Any) -> Report:
    chosen = {"x": X, "y": Y, "eps": 0.2, "attacks": [PGD(steps=5)]} | options
    return evaluate(model or Linear().eval(), **chosen)


def _attacked(points: Callable[[Problem], Any], **options: Any) -> Report:
    return _evaluate(attacks=[Returning(points)], **options)


def _refusal(*args: Any, **options: Any) -> str:
    with pytest.raises(UserError) as error:
        _evaluate(*args, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_is_right_has_no_flags() -> None:
    report = _evaluate()
    assert (report.natural, report.per_attack, report.flags) == (1.0, {"PGD": 0.0}, {})
    assert _evaluate(eps=0.09).best_attack == 1.0


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"attacks": ["pdg"]}, "unknown attack 'pdg': did you mean 'pgd'?"),
        ({"attacks": ["pgd/step=1"]}, "attack 'pgd' has no option 'step': did you mean 'steps'?"),
        (
            {"attacks": [{"steps": 3}]},
            "an attack is not valid: name: Input should be a valid string",
        ),
        ({"suite": "quik"}, "unknown suite 'quik': did you mean 'quick'?"),
        ({"norm": "l1"}, "unknown norm 'l1': use one of l2, linf"),
        ({"norm": "linf", "attacks": ["cw"]}, "attack 'cw' runs under l2 only"),
        ({"mode": "both"}, "unknown mode 'both': use one of table, cascade"),
        ({"device": "tpu"}, "unknown device 'tpu': use one of auto, cpu, cuda"),
        ({"precision": "float16"}, "unknown precision 'float16': use one of float32, float64"),
        ({"eps": 0}, "eps must be above 0 and finite, not 0.0"),
        ({"eps": -1}, "eps must be above 0 and finite, not -1.0"),
        ({"eps": math.nan}, "eps must be above 0 and finite, not nan"),
        ({"eps": math.inf}, "eps must be above 0 and finite, not inf"),
        ({"block": 0}, "block must be an integer of at least 1, not 0"),
        (
            {"x": X * 3},
            "images must lie in [0, 1], not [1.5, 1.5]: scale them, and put any normalisation "
            "inside the model",
        ),
        (
            {"x": X - 0.75},
            "images must lie in [0, 1], not [-0.25, -0.25]: scale them, and put any normalisation "
            "inside the model",
        ),
        (
            {"x": X * math.nan},
            "images must lie in [0, 1], not [nan, nan]: scale them, and put any normalisation "
            "inside the model",
        ),
        (
            {"x": X.to(torch.uint8)},
            "x must hold floats in [0, 1], not torch.uint8: divide images by 255",
        ),
        (
            {"x": np.ones((N, 4), dtype=np.uint8)},
            "x must hold floats in [0, 1], not torch.uint8: divide images by 255",
        ),
        ({"y": Y[:-1]}, "y must hold one label per image: x (6, 4), y (5,)"),
        ({"y": Y[:, None]}, "y must hold one label per image: x (6, 4), y (6, 1)"),
        ({"x": X[:0], "y": Y[:0]}, "y must hold one label per image: x (0, 4), y (0,)"),
        ({"y": Y.float()}, "y must hold integer labels, not torch.float32"),
        ({"y": Y - 1}, "labels must be at least 0, not -1"),
        ({"y": Y + 2}, "labels go up to 2 but the model gives 2 logits"),
        ({"index": [0, 1]}, "index must hold one number per image, not shape (2,)"),
        ({"model": "model"}, "model must be a torch.nn.Module, not str"),
    ],
)
def test_what_cannot_be_evaluated_gets_one_line(options: dict[str, Any], line: str) -> None:
    assert _refusal(**options) == line


def test_a_label_out_of_range_is_found_wherever_it_is() -> None:
    y = torch.cat([Y[:-1], torch.tensor([2])])
    assert _refusal(y=y, block=2) == "labels go up to 2 but the model gives 2 logits"


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda z: z * math.nan, "the model gives NaN or infinite logits on clean images"),
        (lambda z: z / 0, "the model gives NaN or infinite logits on clean images"),
        (lambda z: z[:, :1], "labels go up to 0 but the model gives 1 logits"),
        (lambda z: z[0], "the model must give logits (n, classes) for 6 images, not (2,)"),
        (lambda z: z[:3], "the model must give logits (n, classes) for 6 images, not (3, 2)"),
        (lambda z: (z, z), "the model must give logits (n, classes) for 6 images, not tuple"),
        (
            lambda z: z @ z,
            "the model does not run on images of shape (6, 4): RuntimeError: "
            "mat1 and mat2 shapes cannot be multiplied (6x2 and 6x2)",
        ),
    ],
)
def test_a_model_that_gives_no_logits_gets_one_line(
    change: Callable[[Tensor], Any], line: str
) -> None:
    model = Wrapped(change).eval()
    assert _refusal(model) == line
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_nan_logits_at_attacked_points_are_flagged_and_count_as_broken() -> None:
    def change(logits: Tensor) -> Tensor:
        return torch.where(logits[:, :1] < 0.05, math.nan, logits)  # beyond 0.55

    model = Wrapped(change).eval()
    report = _attacked(lambda p: p.x + torch.tensor([0.07, 0, 0, 0]), model=model)
    assert report.best_attack == 0.0
    assert list(report.flags) == ["nan"]
    assert _attacked(lambda p: p.x, model=model).flags == {}


def test_nan_logits_at_a_clean_image_of_a_later_block_are_flagged() -> None:
    x = X.clone()
    x[-1] = 0.58
    model = Wrapped(lambda z: torch.where(z[:, :1] < 0.05, math.nan, z)).eval()
    report = _attacked(lambda p: p.x, model=model, x=x, block=2)
    assert report.natural == (N - 1) / N
    assert list(report.flags) == ["nan"]


def test_probabilities_are_flagged() -> None:
    report = _evaluate(Wrapped(lambda z: z.softmax(1)).eval())
    assert list(report.flags) == ["probabilities"]
    assert _evaluate(Wrapped(lambda z: z.log_softmax(1)).eval()).flags == {}


def test_a_model_that_answers_otherwise_each_time_is_flagged() -> None:
    model = Wrapped(lambda z: z + 1e-3 * torch.rand_like(z)).eval()
    assert list(_evaluate(model).flags) == ["non-deterministic"]


class Dropping(Linear):
    """In training mode, the bias goes and batch statistics move."""

    def __init__(self) -> None:
        super().__init__()
        self.drop, self.norm = nn.Dropout(0.9), nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.norm(self.drop(x)))


def test_a_model_in_training_mode_is_evaluated_in_eval_mode_and_flagged() -> None:
    model = Dropping().train()
    model.norm.eval()
    report = _evaluate(model)
    assert list(report.flags) == ["train-mode"]
    assert report.natural == 1.0
    assert (model.training, model.drop.training, model.norm.training) == (True, True, False)


@pytest.mark.parametrize("fault", [None, UserError("no"), KeyboardInterrupt()])
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_a_model_comes_back_as_it_was(precision: str, fault: BaseException | None) -> None:
    def points(problem: Problem) -> Tensor:
        if fault:
            raise fault
        return problem.x

    model = Dropping().double().train()
    with torch.no_grad():
        model.weight += 1e-12  # not a float32
        model.norm.running_mean += 1e-12
    model.bias.requires_grad_(False)
    model.drop.eval()
    model.weight.grad = torch.ones_like(model.weight)
    state = {name: value.clone() for name, value in model.state_dict(keep_vars=True).items()}
    tensors = list(model.state_dict(keep_vars=True).values())

    if fault is None:
        _attacked(points, model=model, precision=precision)
    else:
        with pytest.raises(type(fault)):
            _attacked(points, model=model, precision=precision)
    assert (model.training, model.drop.training, model.norm.training) == (True, False, True)
    assert (model.weight.requires_grad, model.bias.requires_grad) == (True, False)
    for name, value in model.state_dict(keep_vars=True).items():
        assert value.dtype == state[name].dtype
        assert torch.equal(value, state[name])
    assert all(
        a is b for a, b in zip(model.state_dict(keep_vars=True).values(), tensors, strict=True)
    )
    assert torch.equal(model.weight.grad, torch.ones_like(model.weight))
    assert model.weight.grad.dtype == torch.float64


def test_a_model_of_several_precisions_comes_back_as_it_was() -> None:
    model = Dropping().eval()
    model.norm.double()
    _evaluate(model, precision="float64")
    assert (model.weight.dtype, model.norm.running_mean.dtype) == (torch.float32, torch.float64)


@pytest.mark.filterwarnings("ignore")  # torch would rather have torch.export
@pytest.mark.parametrize("compiled", [torch.jit.script, lambda model: torch.jit.trace(model, X)])
def test_a_compiled_model_is_evaluated(compiled: Callable[[nn.Module], nn.Module]) -> None:
    report = _evaluate(compiled(Linear().eval()))
    assert (report.natural, report.best_attack, report.flags) == (1.0, 0.0, {})


def test_an_attack_that_leaves_the_model_in_training_mode_changes_no_verdict() -> None:
    def flip(problem: Problem) -> Tensor:
        problem.model.train()  # type: ignore[attr-defined]
        with torch.no_grad():
            problem.model(problem.x + torch.arange(N)[: len(problem), None] * 50.0)
        return problem.x

    def fail(problem: Problem) -> Tensor:
        flip(problem)
        raise RuntimeError("no")

    model = Dropping().eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for first in (flip, fail):
        attacks = [Returning(first), PGD(steps=5)]
        report = _evaluate(model, attacks=attacks, block=3)
        assert report.per_attack["PGD"] == 0.0
        assert report.per_attack["Returning"] == 1.0 or first is fail
        assert not model.training
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_an_attack_that_raises_is_flagged_and_the_others_count() -> None:
    def fail(problem: Problem) -> Tensor:
        raise ValueError("two\nlines")

    report = _evaluate(attacks=[Returning(fail), PGD(steps=5)])
    assert report.errors == {"Returning": "ValueError: two lines"}
    assert math.isnan(report.per_attack["Returning"])
    assert (report.per_attack["PGD"], report.best_attack) == (0.0, 0.0)
    assert list(report.flags) == ["attack-error"]
    assert "- Linear: Returning failed: ValueError: two lines" in report.to_markdown()

    alone = _attacked(fail)
    assert math.isnan(alone.best_attack)
    assert list(alone.flags) == ["attack-error"]


def test_an_attack_that_raises_in_a_cascade_decides_nothing() -> None:
    def fail(problem: Problem) -> Tensor:
        if 3 in problem.index:
            raise MemoryError
        return problem.x + torch.tensor([0.15, 0, 0, 0])

    attacks = [Returning(fail), Returning(lambda p: p.x)]
    report = _evaluate(attacks=attacks, mode="cascade", block=2)
    assert report.errors == {"Returning": "MemoryError: "}
    assert report.best_attack == 1.0  # over the other attack alone, as the flag says
    assert list(report.flags) == ["attack-error"]


@pytest.mark.parametrize(
    "points",
    [
        lambda p: p.x[:2],
        lambda p: p.x[:, :2],
        lambda p: p.x[None],
        lambda p: None,
        lambda p: p.x.numpy(),
        lambda p: (p.x, p.y),
    ],
)
def test_an_attack_that_returns_no_points_is_an_error(points: Callable[[Problem], Any]) -> None:
    report = _attacked(points)
    assert list(report.errors) == ["Returning"]
    assert math.isnan(report.best_attack)


def _moved(*delta: float) -> Callable[[Problem], Tensor]:
    return lambda problem: problem.x + torch.tensor(delta)


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize(
    ("delta", "broken"),
    [
        ((5.0, 0.0, 0.0, 0.0), True),  # projected to 0.2 along the first pixel
        ((0.101, 0.5, 0.5, -0.5), False),  # misclassified, but not where it is projected to
        ((-5.0, 0.0, 0.0, 0.0), False),
        ((math.inf, 0.0, 0.0, 0.0), True),
    ],
)
def test_points_outside_the_ball_are_projected_and_flagged(
    norm: str, delta: tuple[float, ...], broken: bool
) -> None:
    if norm == "linf" and not broken and delta[0] > 0:
        delta = (0.0, *delta[1:])  # each pixel is projected by itself
    report = _attacked(_moved(*delta), norm=norm)
    assert report.best_attack == (0.0 if broken else 1.0)
    assert list(report.flags) == ["outside-ball"]
    examples = report.adversarial["Returning"]
    assert len(examples.index) == (N if broken else 0)
    points = torch.from_numpy(np.asarray(examples.points))
    if broken:
        distance = ThreatModel("l2" if norm == "l2" else "linf", 0.2).distance(points, X)
        assert bool((distance <= 0.2).all())
        assert bool(((points >= 0) & (points <= 1)).all())


@pytest.mark.parametrize("family", ["fixed-budget", "minimal-norm"])
def test_points_outside_the_box_are_clipped_and_flagged(family: Family) -> None:
    x = torch.full((N, 4), 0.95)
    x[:, 0] = 0.5

    def points(problem: Problem) -> Tensor:
        return problem.x + torch.tensor([0.15, 0.1, 0.0, 0.0])

    report = _evaluate(x=x, attacks=[Returning(points, family)])
    assert list(report.flags) == ["outside-ball"]
    assert report.best_attack == 0.0
    assert float(report.adversarial["Returning"].points.max()) == 1.0
    assert float(report.records["distance"].max()) == pytest.approx(math.hypot(0.15, 0.05))


def test_a_minimal_norm_attack_may_end_outside_the_ball_and_breaks_nothing() -> None:
    report = _evaluate(attacks=[Returning(_moved(0.3, 0, 0, 0), "minimal-norm")])
    assert (report.best_attack, report.flags) == (1.0, {})
    assert report.adversarial["Returning"].points[:, 0] == pytest.approx(np.full(N, 0.8))


@pytest.mark.parametrize("eps", [0.2, 0.3])
def test_rounding_is_no_reason_for_a_flag(eps: float) -> None:
    report = _attacked(_moved(eps * (1 + 1e-6), 0, 0, 0), eps=eps)
    assert (report.best_attack, report.flags) == (0.0, {})


@pytest.mark.parametrize("family", ["fixed-budget", "minimal-norm"])
def test_points_that_are_not_numbers_are_flagged_and_break_nothing(family: Family) -> None:
    def points(problem: Problem) -> Tensor:
        found = problem.x + torch.tensor([0.15, 0, 0, 0])
        found[problem.index < 2] = math.nan
        return found

    report = _evaluate(attacks=[Returning(points, family)])
    assert report.best_attack == 2 / N
    assert list(report.flags) == ["outside-ball"]
    assert not np.isnan(report.adversarial["Returning"].points).any()


def test_an_attack_that_changes_its_problem_changes_no_verdict() -> None:
    def forge(problem: Problem) -> Tensor:
        problem.x.add_(torch.tensor([0.4, 0, 0, 0]))
        problem.y.fill_(1)
        return problem.x

    report = _attacked(forge)
    # 0.4 away is not in the ball: projected, it is at 0.2.
    assert report.records.query("attack == 'Returning'")["distance"].tolist() == pytest.approx(
        [0.2] * N, abs=1e-5
    )
    assert report.records["label"].tolist() == [0] * 2 * N
    assert list(report.flags) == ["outside-ball"]
    assert torch.equal(X, torch.full((N, 4), 0.5))
    assert torch.equal(Y, torch.zeros(N, dtype=torch.int64))


# The command line.

WORDS = ("run", "--quiet", "--samples", 20, "--block", 8, "--eps", 0.5)
ATTACKED = (*WORDS, "--defense", "vanilla/epochs=0", "--attack", "pgd/steps=2")
PLUGIN = """
import torch

from benchmark.data import Dataset, Split, digits

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


def net(classes=10, scale=1, nan=False):
    class Net(torch.nn.Linear):
        def forward(self, x):
            logits = super().forward(x.flatten(1)) * scale
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
            (*ATTACKED, "--norm", "l1"),
            "the spec is not valid: norm: Input should be 'l2' or 'linf'",
        ),
        ((*ATTACKED, "--norm", "linf", "--attack", "cw"), "attack 'cw' runs under l2 only"),
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
        ("kwargs: {nan: true}", "the model gives NaN or infinite logits on clean images"),
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
    assert not list(folder.rglob(".*"))

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


class _Rounding(nn.Module):
    """A linear model behind a quantiser, whose gradient is zero everywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Linear()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.inner((4 * x).round() / 4)
        return logits


def test_a_model_that_hides_its_gradients_is_flagged() -> None:
    assert "zero-gradient" in _evaluate(_Rounding().eval()).flags
    assert "zero-gradient" not in _evaluate().flags


def test_a_model_under_no_grad_is_flagged() -> None:
    class Closed(Linear):
        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                logits: Tensor = super().forward(x)
            return logits

    report = _evaluate(Closed().eval())
    assert "zero-gradient" in report.flags
    assert "attack-error" in report.flags


def test_labels_off_by_one_are_flagged() -> None:
    data = load_dataset("digits").test
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()
    right = model(data.x).argmax(1)
    assert "chance" not in evaluate(model, data.x, right, eps=0.01, attacks=["pgd/steps=1"]).flags
    wrong = evaluate(model, data.x, (right + 1) % 10, eps=0.01, attacks=["pgd/steps=1"])
    assert wrong.natural == 0
    assert "chance" in wrong.flags


def test_eps_in_pixels_is_flagged() -> None:
    assert "whole-range" in _evaluate(norm="linf", eps=8).flags
    assert "whole-range" not in _evaluate(norm="linf", eps="8/255").flags


def test_attacks_that_are_no_list_or_no_attack_are_refused() -> None:
    for attacks, line in (
        ("pgd", "attacks must be a list: ['pgd']"),
        ([PGD], "is not an attack"),
        ([3], "3 is not an attack"),
        ([{"name": "pgd", "label": "natural"}], "'natural' is a column of the table"),
        (
            [{"name": "pgd", "label": "a"}, {"name": "pgd", "steps": 3, "label": "a"}],
            "two attacks are labelled 'a'",
        ),
    ):
        with pytest.raises(UserError, match=re.escape(line)):
            _evaluate(attacks=attacks)
    with pytest.raises(UserError, match="runs under l2 only"):
        _evaluate(norm="linf", attacks=[CarliniWagner()])


def test_what_one_precision_alone_misclassifies_is_not_broken_and_flagged() -> None:
    class OtherwiseInFloat64(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            sign = 1.0 if x.dtype is torch.float32 else -1.0
            moved = (x[:, 0] > 0.55).to(x)
            lead = (1 - moved) - sign * moved + 1e-3 * x[:, 0]
            return torch.stack([lead, torch.zeros_like(lead)], 1)

    # An attack that knows: the gradient does not lead there.
    report = _evaluate(
        OtherwiseInFloat64().eval(), attacks=[Returning(lambda problem: problem.x + 0.1)]
    )
    assert report.best_attack == 1
    assert "rounding" in report.flags
