"""Our attacks beside foolbox's, torchattacks' and AutoAttack's: robust accuracy and time.

The model is `pgd-at` of mnist.yaml, within L2 2.0, on the first 200 test images; it is taken from
runs/mnist where `bestattack run mnist.yaml` left it, and trained there otherwise. Times are of the
process's CPU, and each of a pair runs on the same images in turn, chunk by chunk.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor, nn

from attacks import (
    APGD,
    PGD,
    Attack,
    CarliniWagner,
    Problem,
    Strong,
    Targeted,
    ThreatModel,
)  # fmt: skip
from attacks.libraries.foolbox import Foolbox
from attacks.libraries.torchattacks import TorchAttacks
from attacks.objectives import OBJECTIVES
from attacks.searches.boundary import Boundary
from benchmark import evaluate
from benchmark.data.sets import load_dataset
from benchmark.executors import IN_PROCESS
from benchmark.models.obtain import obtained
from benchmark.spec.roster import configured
from benchmark.spec.run_spec import RunSpec, make_spec, read_values

ROOT = os.environ.get("BESTATTACK_DATA")
REPOSITORY = Path(__file__).parents[2]
IMAGES = 200

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(ROOT is None, reason="set BESTATTACK_DATA to the folder that holds mnist"),
]


@dataclass(frozen=True)
class Reference:
    """The model, and images (n, 1, 28, 28) that it classifies correctly, with labels (n,)."""

    spec: RunSpec
    model: nn.Module
    x: Tensor
    y: Tensor


@pytest.fixture(scope="module")
def reference() -> Reference:
    assert ROOT is not None
    torch.set_num_threads(1)
    spec = make_spec(read_values(REPOSITORY / "mnist.yaml"))
    data = load_dataset(spec.data, Path(ROOT))
    (component,) = (one for one in spec.defenses if one.label == "pgd-at")
    # As many threads as the run had: weights depend on them, and are found again by them.
    torch.set_num_threads(os.cpu_count() or 1)
    folder = REPOSITORY / "runs" / "mnist" / "defenses"
    work = obtained(
        configured(component), data, spec.training_threat, spec.seed, folder, torch.device("cpu"),
        True, {}, IN_PROCESS,
    )  # fmt: skip
    trained = IN_PROCESS.run(work)
    torch.set_num_threads(1)
    model = trained.model.eval().requires_grad_(False)
    x, y = data.test.x[:IMAGES], data.test.y[:IMAGES]
    right = model(x).argmax(1) == y
    return Reference(spec, model, x[right], y[right])


def _compare(
    reference: Reference, attacks: dict[str, Attack], chunk: int = 50
) -> tuple[dict[str, int], dict[str, float]]:
    """Samples that each attack leaves unbroken, and its CPU seconds."""
    threat = reference.spec.threat
    left, seconds = dict.fromkeys(attacks, 0), dict.fromkeys(attacks, 0.0)
    for x, y in zip(reference.x.split(chunk), reference.y.split(chunk), strict=True):
        for name, attack in attacks.items():
            began = time.process_time()
            points = attack(Problem(reference.model, x, y, threat)).detach()
            seconds[name] += time.process_time() - began
            near = threat.distance(points, x) <= threat.eps * (1 + 1e-6)
            broken = near & (reference.model(threat.enforce(points, x)).argmax(1) != y)
            left[name] += int((~broken).sum())
    return left, seconds


def _report(
    benchmark: BenchmarkFixture, left: dict[str, int], seconds: dict[str, float], others: str
) -> float:
    """Prints and keeps what was measured; ours over the time of the faster of the others."""
    ratio = seconds["ours"] / min(seconds[name] for name in others.split())
    benchmark.extra_info |= {"left": left, "seconds": seconds, "ratio": ratio}
    for name in left:
        print(f"\n{name}: {left[name]} of {IMAGES} left, {seconds[name]:.1f} s", end="")
    print(f"\nratio {ratio:.3f}")
    return ratio


def _once(benchmark: BenchmarkFixture, work: Callable[[], None]) -> None:
    benchmark.pedantic(work, rounds=1)


def test_pgd_100(reference: Reference, benchmark: BenchmarkFixture) -> None:
    """At equal steps, step size and start, the clean image: as strong, in 0.9 of the time."""
    size = 2.5 * reference.spec.eps / 100
    attacks: dict[str, Attack] = {
        "ours": PGD(steps=100, step_size=size, random_start=False),
        "foolbox": Foolbox("L2PGD", {"steps": 100, "abs_stepsize": size, "random_start": False}),
        "torchattacks": TorchAttacks("PGDL2", {"steps": 100, "alpha": size, "random_start": False}),
    }

    def work() -> None:
        left, seconds = _compare(reference, attacks, IMAGES)
        assert _report(benchmark, left, seconds, "foolbox torchattacks") <= 0.9
        assert left["ours"] <= min(left.values())

    _once(benchmark, work)


def test_cw(reference: Reference, benchmark: BenchmarkFixture) -> None:
    """Verdicts at eps: no weaker than foolbox's 9 x 1000 steps, in a fifth of the time."""
    settings = {"binary_search_steps": 9, "steps": 1000}
    attacks: dict[str, Attack] = {
        "ours": CarliniWagner(),
        "foolbox": Foolbox("L2CarliniWagnerAttack", settings),
    }

    def work() -> None:
        left, seconds = _compare(reference, attacks)
        assert _report(benchmark, left, seconds, "foolbox") <= 1 / 5
        assert left["ours"] <= left["foolbox"]

    _once(benchmark, work)


def test_targets_and_objectives(reference: Reference, benchmark: BenchmarkFixture) -> None:
    """What MALT's ranking of targets and PMA's margin of probabilities each contribute. One target
    at a distance breaks no fewer than one by its logit; `strong`, which ranks by distance at the
    end of a long step, none fewer than any."""
    attacks: dict[str, Attack] = {"ours": Strong()}
    attacks |= {f"pgd {name}": PGD(objective=name) for name in OBJECTIVES}
    attacks |= {
        f"{classes} by {ranking}": Targeted(APGD(), classes, "dlr", ranking)
        for classes in (1, 3)
        for ranking in ("logit", "distance")
    }

    def work() -> None:
        left, seconds = _compare(reference, attacks)
        _report(benchmark, left, seconds, "ours")
        assert left["1 by distance"] <= left["1 by logit"]
        assert left["ours"] <= min(left.values())

    _once(benchmark, work)


def test_boundary(reference: Reference, benchmark: BenchmarkFixture) -> None:
    """5000 steps: no weaker than foolbox's, in a third of the time."""
    attacks: dict[str, Attack] = {
        "ours": Boundary(steps=5000),
        "foolbox": Foolbox("BoundaryAttack", {"steps": 5000}),
    }

    def work() -> None:
        left, seconds = _compare(reference, attacks)
        assert _report(benchmark, left, seconds, "foolbox") <= 1 / 3
        assert left["ours"] <= left["foolbox"]

    _once(benchmark, work)


def test_what_each_stage_of_strong_adds(reference: Reference, benchmark: BenchmarkFixture) -> None:
    """Images that each stage breaks, and passes that it takes: an ablation. The first two, which
    are `strong/quick`, break most of all that is broken."""
    broken: dict[str, set[int]] = {}
    passes: dict[str, int] = {}
    waiting = 0

    def count(rows: Tensor, _: Tensor) -> None:
        nonlocal waiting
        waiting += len(rows)

    def told(rows: Tensor, stage: str) -> None:
        nonlocal waiting
        broken.setdefault(stage, set()).update(rows.tolist())
        passes[stage] = passes.get(stage, 0) + waiting
        waiting = 0

    def work() -> None:
        threat = ThreatModel(reference.spec.norm, reference.spec.eps)
        Strong()(Problem(reference.model, reference.x, reference.y, threat, meter=count, tell=told))
        images = len(reference.y)
        for stage, rows in broken.items():
            print(
                f"\n{stage}: {len(rows)} of {images}, {passes[stage] / images:.0f} passes", end=""
            )
        benchmark.extra_info |= {stage: len(rows) for stage, rows in broken.items()}
        first = len(broken["survey"] | broken["ascents"])
        assert first >= 0.9 * len(set.union(*broken.values()))

    _once(benchmark, work)


def test_strong(reference: Reference, benchmark: BenchmarkFixture) -> None:
    """The suite `strong` against the suite `autoattack`, both as cascades: no weaker, in a fifth of
    the time."""

    def work() -> None:
        left, seconds = {}, {}
        for name, suite in (("ours", "strong"), ("autoattack", "autoattack")):
            began = time.process_time()
            report = evaluate(
                reference.model,
                reference.x,
                reference.y,
                norm=reference.spec.norm,
                eps=reference.spec.eps,
                suite=suite,
                mode="cascade",
                device="cpu",
            )
            seconds[name] = time.process_time() - began
            left[name] = round(report.best_attack * len(reference.y))
        assert _report(benchmark, left, seconds, "autoattack") <= 1 / 5
        assert left["ours"] <= left["autoattack"]

    _once(benchmark, work)
