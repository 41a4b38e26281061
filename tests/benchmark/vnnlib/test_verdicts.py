"""`bestattack run --onnx --vnnlib`: verdicts that are known in closed form, and their evidence."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from benchmark.vnnlib import counterexamples
from benchmark.vnnlib.verdicts import Judge
from tests.benchmark.conftest import refused
from tests.benchmark.vnnlib.small_properties import (
    NEEDS_ONNX,
    SUM_AND_DIFFERENCE,
    Layer,
    assert_in_box,
    read_back,
    replayed,
    write_network,
    write_property,
)
from tests.conftest import Cli

pytestmark = NEEDS_ONNX

Box = Sequence[tuple[str, str]]
BOX = [("-1", "1"), ("-0.5", "0.1")]

# What is asserted, whether there is a counterexample in BOX, and what must hold of its outputs.
ASSERTED: list[tuple[str, bool, Any]] = [
    ("(>= Y_0 1.05)", True, lambda y: y[0] >= 1.05),
    ("(>= Y_0 1.1)", True, lambda y: 10 * y[0] >= 11),  # at a corner, as far as rounding goes
    ("(>= Y_0 1.15)", False, None),
    ("(> Y_1 1.45)", True, lambda y: y[1] > 1.45),
    ("(> Y_1 1.51)", False, None),
    ("(and (>= Y_0 0.5) (>= Y_1 1.2))", True, lambda y: y[0] >= 0.5 and y[1] >= 1.2),
    ("(and (>= Y_0 0.9) (>= Y_1 1.2))", False, None),
    ("(or (>= Y_0 9) (and (<= Y_0 -1.4) (<= Y_1 -0.4)))", True, lambda y: y[0] <= -1.4),
    ("(or (>= Y_0 9) (>= Y_1 9) (<= (+ Y_0 Y_1) -3))", False, None),
    ("(<= (+ (* 2 Y_0) Y_1) -3.4)", True, lambda y: 2 * y[0] + y[1] <= -3.4),
    ("(or (and (>= X_0 0.5) (<= Y_0 -0.1)) (and (<= X_0 -0.9) (>= Y_1 -0.5)))", True, None),
    ("(or (and (>= X_0 0.6) (<= Y_0 0)) (and (<= X_0 -0.9) (>= Y_1 -0.3)))", False, None),
]


@pytest.mark.parametrize(("asserted", "expected", "holds"), ASSERTED)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_verdicts_on_a_linear_network(
    tmp_path: Path, cli: Cli, asserted: str, expected: bool, holds: Any, dtype: Any
) -> None:
    network = write_network(tmp_path / "net.onnx", [SUM_AND_DIFFERENCE], dtype)
    path = write_property(tmp_path / "p.vnnlib", BOX, 2, asserted)
    ended = cli("run", "--onnx", network, "--vnnlib", path)
    assert (ended.status, ended.err) == (0, "")
    if not expected:
        assert ended.out == "unknown\n"
        proven = cli("run", "--onnx", network, "--vnnlib", path, "--exact")
        assert proven == (0, "unsat\n", "")
        return
    inputs, outputs = read_back(ended.out)
    assert_in_box(inputs, BOX)
    assert replayed(network, inputs, dtype) == [float(value) for value in outputs]
    if holds is not None:
        assert holds([Fraction(value) for value in outputs])


@pytest.mark.parametrize(
    ("point", "verdict"), [(("0.3", "0.4"), "sat"), (("0.3", "0.40001"), "unknown")]
)
def test_a_box_of_one_point(tmp_path: Path, cli: Cli, point: tuple[str, str], verdict: str) -> None:
    network = write_network(tmp_path / "net.onnx", [SUM_AND_DIFFERENCE])
    box = [(value, value) for value in point]
    path = write_property(tmp_path / "p.vnnlib", box, 2, "(<= Y_0 0.7000001)")
    ended = cli("run", "--onnx", network, "--vnnlib", path)
    assert ended.out.split("\n", 1)[0] == verdict
    if verdict == "sat":  # neither number is one of float32
        inputs, _ = read_back(ended.out)
        assert_in_box(inputs, box)
        assert [np.float32(value) for value in inputs] == [np.float32(value) for value in point]


def test_an_input_may_be_held_still(tmp_path: Path, cli: Cli) -> None:
    network = write_network(tmp_path / "net.onnx", [SUM_AND_DIFFERENCE])
    box = [("0.1", "0.1"), ("-1", "1")]
    path = write_property(tmp_path / "p.vnnlib", box, 2, "(>= Y_0 1.09)")
    inputs, _ = read_back(cli("run", "--onnx", network, "--vnnlib", path).out)
    assert_in_box(inputs, box)


def test_a_point_that_only_the_converted_network_breaks_is_no_counterexample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the two compute differs by rounding; here by more, so that it shows."""
    from benchmark.vnnlib.properties import read_property

    judge = Judge(write_network(tmp_path / "net.onnx", [SUM_AND_DIFFERENCE]), exact=False)
    run, asked = judge._file.run, []

    def lower(x: Tensor) -> list[Tensor]:
        asked.append(x)
        return [output - 0.1 for output in run(x)]

    monkeypatch.setattr(judge._file, "run", lower)
    near = read_property(write_property(tmp_path / "near.vnnlib", BOX, 2, "(>= Y_0 1.05)"))
    assert judge.decide(near, 60, 0).status == "unknown"
    # Where there is room, it goes on to points that both break.
    far = read_property(write_property(tmp_path / "far.vnnlib", BOX, 2, "(>= Y_0 0.4)"))
    middle = judge.decide(far, 60, 0)
    assert middle.counterexample is not None
    assert float(middle.counterexample.outputs[0]) >= 0.4


def test_several_properties_have_a_line_each(tmp_path: Path, cli: Cli) -> None:
    network = write_network(tmp_path / "net.onnx", [SUM_AND_DIFFERENCE])
    broken = write_property(tmp_path / "a.vnnlib", BOX, 2, "(>= Y_0 1)")
    robust = write_property(tmp_path / "b.vnnlib", BOX, 2, "(>= Y_0 2)")
    ended = cli("run", "--onnx", network, "--vnnlib", broken, robust)
    assert ended.status == 0
    assert ended.out == "a.vnnlib sat\nb.vnnlib unknown\n"
    assert ended.err == (
        "The counterexamples were not kept: give --out FOLDER for a file of each.\n"
    )
    out = tmp_path / "kept"
    again = cli("run", "--onnx", network, "--vnnlib", broken, "--vnnlib", robust, "--out", out)
    assert again == (0, ended.out, "")
    assert [path.name for path in out.iterdir()] == ["a.vnnlib.counterexample"]
    kept = (out / "a.vnnlib.counterexample").read_text()
    assert kept == cli("run", "--onnx", network, "--vnnlib", broken).out
    assert_in_box(read_back(kept)[0], BOX)


def test_one_that_cannot_be_judged_does_not_stop_the_others(tmp_path: Path, cli: Cli) -> None:
    network = write_network(tmp_path / "net.onnx", [SUM_AND_DIFFERENCE])
    paths = [
        write_property(tmp_path / "a.vnnlib", BOX, 3, "(>= Y_0 1)"),
        write_property(tmp_path / "b.vnnlib", BOX, 2, "(>= Y_9 1)"),
        write_property(tmp_path / "c.vnnlib", BOX, 2, "(>= Y_0 9)"),
    ]
    ended = cli("run", "--onnx", network, "--vnnlib", *paths)
    assert ended.status == 3
    assert ended.out == "a.vnnlib error\nb.vnnlib error\nc.vnnlib unknown\n"
    assert ended.err.splitlines() == [
        f"a.vnnlib declares 3 outputs: {network} has 2",
        f"{paths[1]}: line 9: 'Y_9' is no number and not declared",
        "bestattack: a.vnnlib cannot be judged; b.vnnlib cannot be judged",
    ]


def test_the_limit_ends_a_search(tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a single forward pass where it is 0."""
    network = write_network(tmp_path / "net.onnx", [SUM_AND_DIFFERENCE])
    path = write_property(tmp_path / "p.vnnlib", BOX, 2, "(>= Y_0 1.05)")
    calls = []
    look = counterexamples._Best.__call__

    def count(self: Any, rows: Tensor, logits: Tensor) -> None:
        calls.append(len(rows))
        look(self, rows, logits)

    monkeypatch.setattr(counterexamples._Best, "__call__", count)
    words = ("run", "--onnx", network, "--vnnlib", path)
    assert cli(*words, "--limit", 0).out == "unknown\n"
    assert calls == [1]
    assert cli(*words).out.startswith("sat\n")


# A hat of height 1 above 0.9: |x - 0.9| by two ReLU units, and a constant 0.
HAT: list[Layer] = [([[1], [-1]], [-0.9, 0.9]), ([[-1, -1], [0, 0]], [1, 0])]


@pytest.mark.parametrize(
    ("asserted", "verdict"),
    [
        ("(>= Y_0 0.999)", "sat"),
        ("(>= Y_0 1.001)", "unsat"),
        ("(and (>= Y_0 0.5) (<= Y_0 0.501) (>= Y_1 0))", "sat"),
        ("(and (<= Y_0 0.5) (<= Y_1 0) (>= Y_0 0.501))", "unsat"),
        ("(or (<= Y_0 -1) (>= Y_0 1.5) (and (>= Y_1 0) (>= Y_0 2) (<= Y_0 3)))", "unsat"),
        ("(or (and (<= X_0 0.1) (>= Y_0 0.21)) (and (>= X_0 0.95) (>= Y_0 0.96)))", "unsat"),
        ("(or (and (<= X_0 0.1) (>= Y_0 0.21)) (and (>= X_0 0.95) (>= Y_0 0.94)))", "sat"),
    ],
)
def test_exact_verdicts_on_a_small_network(
    tmp_path: Path, cli: Cli, asserted: str, verdict: str
) -> None:
    network = write_network(tmp_path / "net.onnx", HAT)
    path = write_property(tmp_path / "p.vnnlib", [("0", "1")], 2, asserted)
    ended = cli("run", "--onnx", network, "--vnnlib", path, "--exact")
    assert (ended.status, ended.err) == (0, "")
    assert ended.out.split("\n", 1)[0] == verdict
    if verdict == "sat":
        inputs, outputs = read_back(ended.out)
        assert_in_box(inputs, [("0", "1")])
        assert replayed(network, inputs) == [float(value) for value in outputs]


def test_the_solver_finds_what_the_attack_missed(
    tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counterexamples.CaseSearch, "run", lambda *_: None)
    network = write_network(tmp_path / "net.onnx", HAT)
    path = write_property(tmp_path / "p.vnnlib", [("0", "1")], 2, "(>= Y_0 0.9)")
    words = ("run", "--onnx", network, "--vnnlib", path)
    assert cli(*words).out == "unknown\n"
    inputs, outputs = read_back(cli(*words, "--exact").out)
    assert replayed(network, inputs) == [float(value) for value in outputs]


def test_a_contradiction_is_loud(tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmark.vnnlib.proofs import Prover

    monkeypatch.setattr(Prover, "prove", lambda *_: "robust")
    network = write_network(tmp_path / "net.onnx", HAT)
    path = write_property(tmp_path / "p.vnnlib", [("0", "1")], 2, "(>= Y_0 0.9)")
    ended = cli("run", "--onnx", network, "--vnnlib", path, "--exact")
    assert ended.status == 3
    assert ended.out.startswith("sat\n")
    assert ended.err == (
        "bestattack: CONTRADICTION: p.vnnlib has a counterexample that onnxruntime confirms, and "
        "the solver proves that there is none\n"
    )


@pytest.mark.parametrize(
    ("kind", "verdict", "said"),
    [
        ("Relu", "unsat", ""),
        ("Sigmoid", "unknown", "its operation sigmoid is not supported"),
    ],
)
def test_a_network_that_bounds_cannot_pass_is_attacked(
    kind: str, verdict: str, said: str, tmp_path: Path, cli: Cli
) -> None:
    from onnx import TensorProto, helper, save

    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 1]) for name in ("x", "y")]
    nodes = [helper.make_node(kind, ["x"], ["r"]), helper.make_node("Add", ["x", "r"], ["y"])]
    graph = helper.make_graph(nodes, "net", ends[:1], ends[1:])
    opset = [helper.make_opsetid("", 13)]
    network = tmp_path / "net.onnx"
    save(helper.make_model(graph, opset_imports=opset, ir_version=8), str(network))
    path = write_property(tmp_path / "p.vnnlib", [("-1", "1")], 1, "(>= Y_0 2.5)")
    ended = cli("run", "--onnx", network, "--vnnlib", path, "--exact")
    assert (ended.status, ended.out) == (0, f"{verdict}\n")
    assert ended.err == (f"--exact cannot show unsat here: {network}: {said}\n" if said else "")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--vnnlib", "p.vnnlib"), "--vnnlib, --exact and --limit ask about a network: name its"),
        (
            ("--exact",),
            "--vnnlib, --exact and --limit ask about a network: name its file by --onnx",
        ),
        (("--onnx", "net.onnx"), "--onnx needs properties: name their files by --vnnlib"),
        (("mine.yaml", "--onnx", "net.onnx"), "--onnx goes without a spec: leave one of them out"),
        (
            ("--onnx", "net.onnx", "--vnnlib", "p.vnnlib", "--defense", "a", "--data-root", "b"),
            "--onnx goes with --vnnlib, --exact, --limit, --seed and --out alone, not with "
            "--defense, --data-root: to attack an ONNX file on data, name it as a --defense",
        ),
        (
            ("--onnx", "net.onnx", "--vnnlib", "p.vnnlib", "--seed", -1),
            "--seed must be from 0 to 9223372036854775807, not -1",
        ),
        (
            ("--onnx", "net.onnx", "--vnnlib", "no.vnnlib"),
            "cannot read the property no.vnnlib: there is no such file",
        ),
        (
            ("--onnx", "net.onnx", "--vnnlib", "p.vnnlib", "p.vnnlib"),
            "two properties are named p.vnnlib: ask about them one by one",
        ),
        (("--onnx", "no.onnx", "--vnnlib", "p.vnnlib"), "no.onnx: there is no such file"),
        (("--onnx", "p.vnnlib", "--vnnlib", "p.vnnlib"), "p.vnnlib: is no whole ONNX file: "),
        (
            ("--onnx", "net.onnx", "--vnnlib", "p.vnnlib"),
            "p.vnnlib declares 1 inputs: net.onnx has 2",
        ),
    ],
)
def test_a_mistake_is_one_line(
    tmp_path: Path,
    cli: Cli,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[object, ...],
    line: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_network(Path("net.onnx"), [SUM_AND_DIFFERENCE])
    write_property(Path("p.vnnlib"), BOX[:1], 2, "(>= Y_0 1)")
    ended = cli("run", *words)
    assert (ended.status, ended.out) == (1, "")
    assert ended.err.startswith(f"bestattack: {line}")
    assert ended.err.count("\n") == 1


def test_two_specs_are_one_too_many(cli: Cli) -> None:
    refused(cli("run", "a.yaml", "b.yaml"), "give one spec, not 2: a.yaml, b.yaml")
