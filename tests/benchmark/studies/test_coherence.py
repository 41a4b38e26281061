"""Coherence, against closed forms and against the losses that it is defined by."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, softplus

from benchmark.data.sets import load_dataset
from benchmark.studies.coherence import of_arms, of_members
from tests.benchmark.conftest import Cli, assert_written, refused

# Rows on digits: nothing to compare; ten arms of known weights; two members that are each other's
# opposite; three that see only dark first rows of pixels; one member; arms that are none.
PLUGIN = """
import torch


class Plain(torch.nn.Module):
    members = torch.ones(3)  # of the same name, and no method

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.register_buffer("weight", torch.randn(10, 64, generator=generator))

    def forward(self, x):
        return (x.flatten(1) - 0.5) @ self.weight.T


class Arms(Plain):
    def arms(self, x):
        return self(x)


class Opposite(Plain):
    def members(self, x):
        return torch.stack([self(x), -self(x)])


class Dead(Plain):
    def members(self, x):
        logits = self(x) * (0.3 - x[:, 0, 0].mean(1, keepdim=True)).relu()
        return torch.stack([logits] * 3)


class Alone(Plain):
    def members(self, x):
        return self(x)[None]


class Broken(Plain):
    def arms(self, x):
        return self(x)[:, 0]
"""

A, B = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.6, 0.8, 0.0])
WEIGHTS = torch.stack([A, B, -2 * A, torch.tensor([0.0, 0.0, 5.0])])
X, Y = torch.rand(8, 1, 1, 3, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 4


def linear(weights: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda x: x.flatten(1) @ weights.T + 3


def network(outputs: int, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(3, 9), nn.Tanh(), nn.Linear(9, outputs)).double()


def cosines(losses: list[Tensor], points: Tensor) -> Tensor:
    """Of the gradients of losses, each one value per sample: (losses, losses, n)."""
    each = [torch.autograd.grad(loss.sum(), points, retain_graph=True)[0] for loss in losses]
    units = torch.stack(each).flatten(2)
    units = units / units.norm(dim=2, keepdim=True)
    return torch.einsum("ind,jnd->ijn", units, units)


def test_of_linear_arms_it_is_that_of_their_weights() -> None:
    # Label 0 falls along -A; of the others, arm 1 rises at -0.6, arm 2 with it, arm 3 across.
    expected = torch.tensor([1.0, 0.6, 1.0, 0.0]).double()
    assert torch.allclose(of_arms(linear(WEIGHTS), X, Y), expected[Y])
    # Of two arms that look for the same, one cannot rise as the other falls.
    assert torch.allclose(of_arms(linear(WEIGHTS[[0, 0]]), X, Y % 2), torch.tensor(-1.0).double())


def test_of_members_it_is_the_largest_of_all_pairs() -> None:
    two = linear(torch.stack([A, B]))
    same, opposite = (lambda x, s=s: torch.stack([two(x), s * two(x)]) for s in (1, -1))
    assert torch.allclose(of_members(same, X, Y % 2), torch.ones(8).double())
    assert torch.allclose(of_members(opposite, X, Y % 2), -torch.ones(8).double())
    across = linear(torch.stack([torch.zeros(3), torch.tensor([0.0, 0.0, 1.0])]))
    three = lambda x: torch.stack([two(x), -two(x), across(x)])  # noqa: E731
    assert torch.allclose(of_members(three, X, Y % 2), torch.zeros(8).double(), atol=1e-7)


def test_it_is_that_of_the_losses() -> None:
    x = X.double()
    model, points = network(4, 0), x.clone().requires_grad_()
    scores = model(points)
    own = Y[:, None] == torch.arange(4)
    losses = list(softplus(torch.where(own, -scores, scores)).T)
    pairs = cosines(losses, points)[Y, :, torch.arange(8)]
    assert torch.allclose(of_arms(model, x, Y), pairs.masked_fill(own, -2).amax(1))

    members = [network(4, seed) for seed in range(3)]
    points = x.clone().requires_grad_()
    found = cosines([cross_entropy(one(points), Y, reduction="none") for one in members], points)
    expected = torch.stack([found[0, 1], found[0, 2], found[1, 2]]).amax(0)
    together = lambda x: torch.stack([one(x) for one in members])  # noqa: E731
    assert torch.allclose(of_members(together, x, Y), expected)


@pytest.mark.parametrize("scale", [1e-18, 1e5])
def test_the_scale_of_scores_changes_nothing(scale: float) -> None:
    model = network(4, 0).float()
    expected = of_arms(model, X, Y)
    assert torch.allclose(of_arms(lambda x: scale * model(x), X, Y), expected, atol=1e-5)
    # Nor, for two classes, do logits so far apart that a softmax would lose its gradient.
    members = [network(2, seed).float() for seed in range(3)]
    expected = of_members(lambda x: torch.stack([one(x) for one in members]), X, Y % 2)
    scaled = lambda x: torch.stack([scale * one(x) for one in members])  # noqa: E731
    assert torch.allclose(of_members(scaled, X, Y % 2), expected, atol=1e-5)


def test_where_a_gradient_is_0_there_is_none() -> None:
    # Arm 1 is flat where the first pixel is under a half.
    arms = lambda x: torch.stack([x.flatten(1)[:, 1], (x.flatten(1)[:, 0] - 0.5).relu()], 1)  # noqa: E731
    found, flat = of_arms(arms, X, Y % 2), X.flatten(1)[:, 0] < 0.5
    assert 0 < int(flat.sum()) < 8
    assert found.isnan().tolist() == flat.tolist()
    assert (found[~flat] == 0).all()


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (lambda: of_arms(lambda x: x.flatten(1)[:, 0], X, Y), r"arms give \(8,\), not scores"),
        (lambda: of_arms(lambda x: x.flatten(1), X, Y), r"arms give \(8, 3\), not scores"),
        (lambda: of_members(lambda x: x.flatten(1), X, Y), r"members give \(8, 3\), not logits"),
        (lambda: of_members(lambda x: x.flatten(1)[None], X, Y), "one member has no pair"),
        (lambda: of_arms(lambda x: torch.ones(8, 4), X, Y), "gives no gradients"),
    ],
)
def test_what_is_no_aggregation_is_refused(call: Callable[[], Tensor], line: str) -> None:
    with pytest.raises(ValueError, match=line):
        call()


def spec_of(folder: Path, *names: str) -> Path:
    (folder / "mine.py").write_text(PLUGIN)
    defenses = [
        {"name": "external", "model": f"{folder}/mine.py:{name.title()}", "label": name}
        for name in names
    ]
    values = {"eps": 0.1, "samples": 50, "block": 7, "attacks": ["pgd/steps=1"]}
    (folder / "spec.yaml").write_text(yaml.safe_dump(values | {"defenses": defenses}))
    return folder / "spec.yaml"


@pytest.mark.parametrize(
    ("words", "split", "count"),
    [((), "test", 50), (("--split", "train", "--samples", 90), "train", 90)],
)
def test_of_a_run_it_is_measured_for_each_row_that_has_it(
    tmp_path: Path, cli: Cli, words: tuple[object, ...], split: str, count: int
) -> None:
    spec, run = spec_of(tmp_path, "plain", "arms", "opposite", "dead"), tmp_path / "run"
    assert cli("run", spec, "--out", run, "--quiet").status == 0
    ended = cli("study", "coherence", run, *words, "--device", "cpu")
    found = assert_written(run, "coherence", ended)
    assert found["defense"].unique().tolist() == ["arms", "opposite", "dead"]
    images = getattr(load_dataset("digits"), split)
    x, y = images.x[:count], images.y[:count]
    rows = {name: own.set_index("index") for name, own in found.groupby("defense")}
    assert all(own.index.tolist() == list(range(count)) for own in rows.values())
    kinds = {name: own["kind"].unique().tolist() for name, own in rows.items()}
    assert kinds == {"arms": ["arms"], "opposite": ["members"], "dead": ["members"]}

    weight = torch.randn(10, 64, generator=torch.Generator().manual_seed(3))
    unit = weight / weight.norm(dim=1, keepdim=True)
    nearest = (-unit @ unit.T).fill_diagonal_(-2).amax(1)
    assert rows["arms"]["coherence"].tolist() == pytest.approx(nearest[y].tolist(), abs=1e-6)
    bright = x[:, 0, 0].mean(1) >= 0.3
    assert 0 < int(bright.sum()) < count
    values = rows["dead"]["coherence"]
    assert values.isna().tolist() == bright.tolist()
    assert values.dropna().tolist() == pytest.approx([1] * int((~bright).sum()))
    assert f" dead: left out {int(bright.sum())} images, where a gradient is 0." in ended.out
    cells = [cell.strip() for cell in ended.out.splitlines()[2].split("|")[1:-1]]
    known = rows["arms"]["coherence"].to_numpy()
    numbers = (known.mean(), known.std(), *np.quantile(known, [0.25, 0.5, 0.75]))
    assert cells == ["arms", "arms", str(count), *(f"{number:.3f}" for number in numbers)]


def test_a_row_that_has_none_is_left_out(tmp_path: Path, cli: Cli) -> None:
    run, words = tmp_path / "run", ("--device", "cpu")
    spec = spec_of(tmp_path, "alone", "arms", "broken")
    assert cli("run", spec, "--out", run, "--quiet").status == 0
    ended = cli("study", "coherence", run, *words)
    found = assert_written(run, "coherence", ended)
    assert found["defense"].unique().tolist() == ["arms"]
    why = "alone: one member has no pair; broken: arms give (7,), not scores (n, classes)"
    assert f" Left out whole: {why}." in ended.out


def test_runs_with_nothing_to_compare_and_too_many_samples_are_refused(
    tmp_path: Path, cli: Cli
) -> None:
    run = tmp_path / "run"
    assert cli("run", spec_of(tmp_path, "plain"), "--out", run, "--quiet").status == 0
    line = f"no row of {run} has arms or members: name a run of robin or ensemble"
    refused(cli("study", "coherence", run), line)
    line = f"{tmp_path} holds no run with results: name the folder of a run"
    refused(cli("study", "coherence", tmp_path), line)
    assert cli("run", spec_of(tmp_path, "broken", "alone"), "--out", run, "--quiet").status == 0
    why = "broken: arms give (7,), not scores (n, classes); alone: one member has no pair"
    refused(cli("study", "coherence", run), f"no row of {run} has a coherence: {why}")
    line = "digits has 355 test images, not 356: lower samples"
    refused(cli("study", "coherence", run, "--samples", 356), line)
