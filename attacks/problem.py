"""What an attack is given, and the only way in which it talks to a model."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from attacks import noise
from attacks.messages import described
from attacks.objectives import margin
from attacks.smoothing import Cooling
from attacks.threat import Norm, ThreatModel
from attacks.views import View

# How many standard deviations of a draw make a sample of a randomised model misclassified.
_SURE = 3.0

Model = Callable[[Tensor], Tensor]
Meter = Callable[[Tensor, Tensor], None]
Family = Literal["fixed-budget", "minimal-norm"]


class NotApplicableError(ValueError):
    """The target lacks what the attack needs; one line that says what."""


# What to do about a model without gradients.
_INSTEAD = "use strong, smoothed:BASE or bpda:BASE around this attack, or square, which needs none"


class NoGradientError(ValueError):
    """The model gives no gradients, not even zeros."""


def positions(keep: Tensor) -> Tensor:
    """Where a mask, bool (n,), is true; positions stay as they are.

    What is selected from several tensors is selected by positions, since an accelerator has to be
    waited for each time that a mask selects.

    >>> positions(torch.tensor([True, False, True]))
    tensor([0, 2])
    """
    return keep.nonzero().squeeze(1) if keep.dtype == torch.bool else keep


@dataclass(frozen=True)
class Problem:
    """Samples under attack: images, labels, the threat, and what names each sample's noise.

    model   from images (n, *shape) to logits (n, classes), in eval mode.
    x, y    clean images (n, *shape) inside the box of `threat`; labels (n,), int64.
    threat  what points must stay within. Its bounds may differ by pixel, and where pixels must keep
            their values, by image; they get the dtype of the images, and come to their device.
    seed    of the attack; index (n,), int64, is each sample's number in its data set. Noise depends
            on (seed, index, stream) alone. Default: 0, 1, 2, ...
    meter   called with (rows, logits) after each forward, where rows (n,) are the samples' places
            in the problem that the attack was given. It counts; attacks do not.
    start   where to begin (n, *shape), such as points found on another model; None: the attack's
            own choice.
    view    what the attack sees in place of the model's logits; see `seen`.
    peers   other models, by name, that an attack may craft its points on.
    cooling  what smooths the model's gradients while the attack climbs; None: they are its own.
    draws   how many calls of a randomised model each forward takes the mean of; see `logits`.
    tell    called with (rows, stage) where an attack of several stages broke samples; rows as for
            the meter. The last that breaks a sample counts. None: nobody asks.
    allowed  a class that an image may be given without being misclassified, as where a model may
            reject it; None: there is none.

    >>> model = lambda x: torch.stack([x[:, 0], 1 - x[:, 0]], dim=1)
    >>> x, y = torch.tensor([[0.6], [0.9]]), torch.tensor([0, 0])
    >>> problem = Problem(model, x, y, ThreatModel("l2", 0.2), seed=1)
    >>> second = problem.select(torch.tensor([False, True]))
    >>> second.index  # so it draws the same noise alone as together
    tensor([1])
    >>> bool((second.normal(stream=0) == problem.normal(stream=0)[1:]).all())
    True
    """

    model: Model
    x: Tensor
    y: Tensor
    threat: ThreatModel
    seed: int = 0
    index: Tensor = field(default=None)  # type: ignore[assignment]
    meter: Meter | None = None
    rows: Tensor = field(default=None)  # type: ignore[assignment]
    start: Tensor | None = None
    view: View | None = None
    peers: Mapping[str, Model] = field(default_factory=dict)
    cooling: Cooling | None = None
    draws: int = 1
    tell: Callable[[Tensor, str], None] | None = None
    allowed: int | None = None

    def __post_init__(self) -> None:
        places = torch.arange(len(self.x), device=self.x.device)
        if self.index is None:
            object.__setattr__(self, "index", places)
        if self.rows is None:
            object.__setattr__(self, "rows", places)
        if not self.threat.is_beside(self.x):
            object.__setattr__(self, "threat", self.threat.around(self.x))

    def __len__(self) -> int:
        return len(self.x)

    def select(self, keep: Tensor) -> "Problem":
        """The same problem for some samples: `keep` is bool (n,) or positions."""
        keep = positions(keep)
        return replace(
            self,
            x=self.x[keep],
            y=self.y[keep],
            threat=self.threat.select(keep, self.x.dim()),
            index=self.index[keep],
            rows=self.rows[keep],
            start=None if self.start is None else self.start[keep],
            view=None if self.view is None else self.view.select(keep),
        )

    def seen(self, view: View, model: Model | None = None) -> "Problem":
        """The same problem through a view: two logits, label 0. `model` gives what is viewed;
        default: the model's logits."""
        return replace(self, model=model or self.model, y=torch.zeros_like(self.y), view=view)

    def logits(self, points: Tensor) -> Tensor:
        """The logits (n, classes) at one point per sample (n, *shape), through the view if any.

        Of a randomised model they are the mean of several draws (expectation over transformation,
        Athalye et al. 2018), so that gradients are those of the mean. The label's logit is shifted
        so that a sample counts as misclassified only where the mean margin is above 0 by three
        standard deviations of a draw; searches then go on until nearly all draws are wrong.
        """
        step = nullcontext() if self.cooling is None else self.cooling.step(points)
        forward = self._forward if self.draws == 1 else self._expected
        outputs = forward(points, step)
        return outputs if self.view is None else self.view(outputs)

    def _told(self) -> tuple[Tensor, bool]:
        """The true labels (n,), and whether the model's outputs are one logit per class."""
        if self.view is None:
            return self.y, True
        return self.view.y, self.view.margin is margin

    def call(self, points: Tensor) -> Tensor:
        """What the model gives for some points. It may destroy what it is given: that is a copy."""
        return self.model(points.clone(memory_format=torch.contiguous_format))

    def _forward(self, points: Tensor, step: AbstractContextManager[object]) -> Tensor:
        with step:
            # A cut is noticed where its outcome is next used (`StraightThrough`); for the model's
            # last step this view is that use.
            outputs = self.call(points)
            outputs = outputs.view_as(outputs)
        if self.meter is not None:
            self.meter(self.rows, outputs)
        if self.allowed is None:
            return outputs
        y, are_logits = self._told()
        if not are_logits:
            return outputs
        # The allowed class counts as the label's.
        allowed = outputs[:, self.allowed]
        own = outputs.gather(1, y[:, None]).squeeze(1).maximum(allowed)
        outputs = outputs.scatter(1, y[:, None], own[:, None])
        column = torch.full_like(y, self.allowed)[:, None]
        return outputs.scatter(1, column, outputs.detach().amin(1, keepdim=True))

    def _expected(self, points: Tensor, step: AbstractContextManager[object]) -> Tensor:
        outputs = torch.stack([self._forward(points, step) for _ in range(self.draws)])
        mean = outputs.mean(0)
        y, are_logits = self._told()
        if not are_logits:
            return mean
        margins = torch.stack([margin(draw, y) for draw in outputs.detach()])
        wanted = margins.mean(0) - _SURE * margins.std(0)
        return mean.scatter_add(1, y[:, None], (margin(mean.detach(), y) - wanted)[:, None])

    def normal(self, stream: int) -> Tensor:
        """Standard normal noise, shaped as the images."""
        shape = tuple(self.x.shape[1:])
        return noise.normal(self.seed, self.index, stream, shape).to(self.x.dtype)

    def random_start(self, stream: int) -> Tensor:
        """Points uniform in the ball around each image, clipped to the box."""
        return self.threat.random_start(self.x, self.seed, self.index, stream)


@dataclass(frozen=True)
class Facts:
    """What the harness needs to know of an attack before it runs it.

    family      "fixed-budget": the points lie in the threat's ball and box; the evaluator brings
                those that do not into it, and says so. "minimal-norm": the points are the closest
                misclassified ones that were found, and the clean image where there are none; the
                evaluator leaves them where they are, and those beyond eps break nothing. Such an
                attack may stop working on a sample once its verdict within eps is known.
    norms       the norms that it runs under, by default L2 and L-infinity. It is never asked to run
                under another: a suite leaves it out, and a user who names it gets an error.
    passes      the most forward passes that a sample can take; None where that is not known, or
                depends on the model. Cascades begin with the cheapest attack, progress bars show
                how far one has come, and the flag of attacks that have not converged needs it.
    minimises   whether a minimal-norm attack goes on for the smallest distance where it has broken
                a sample within eps already. Curves and distances in reports rely on such attacks,
                and an attack that runs several times keeps the closest point of all runs.
    by_block    whether the points depend on which samples are attacked together, as they should
                not. Results are then kept apart by the size of the blocks.
    transfers   whether the points are crafted on another model alone. That they beat attacks on the
                model itself is a sign of gradients that mislead.
    sources     the names of other models under evaluation that points are crafted on, which the
                harness hands over in `Problem.peers`.

    >>> Facts("minimal-norm", norms=("l2",), minimises=True).passes is None
    True
    >>> Facts("fixed-budget", minimises=True)
    Traceback (most recent call last):
    ValueError: only a minimal-norm attack minimises
    """

    family: Family
    norms: tuple[Norm, ...] = ("l2", "linf")
    passes: int | None = None
    minimises: bool = False
    by_block: bool = False
    transfers: bool = False
    sources: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.minimises and self.family == "fixed-budget":
            raise ValueError("only a minimal-norm attack minimises")


@runtime_checkable
class Attack(Protocol):
    """A frozen dataclass of hyperparameters with one method, from a problem to points.

    `facts` says what the harness needs to know of it: a class variable, or a property where it
    depends on the hyperparameters. The call takes a problem of n samples and returns a point for
    each, (n, *shape). It raises ValueError, in one line, where it cannot run on the problem, and
    NotApplicableError where the model lacks what it needs.

    What only some attacks can do has a protocol of its own: `CanMaximise`, `CanMinimise`,
    `HasVariants`.
    """

    @property
    def facts(self) -> Facts: ...

    def __call__(self, problem: Problem) -> Tensor: ...


@runtime_checkable
class CanMaximise(Protocol):
    """An attack that can climb on past the decision boundary, as adversarial training and
    transferred points need it."""

    def maximise(self, problem: Problem) -> Tensor:
        """Points (n, *shape) in the ball and the box where the objective is high, whether the
        model misclassifies them or not."""
        ...


@runtime_checkable
class CanMinimise(Protocol):
    """A minimal-norm attack that stops at the budget unless it is told to minimise."""

    def minimising(self) -> Attack:
        """The same attack, which goes on to the smallest distance that it finds."""
        ...


@runtime_checkable
class HasVariants(Protocol):
    """An attack that is another one on some models."""

    def on(self, model: Model) -> Attack:
        """The attack that this one is on the model, which may be itself."""
        ...


def minimising(attack: Attack) -> Attack:
    """The same attack asked to minimise, where it has that choice."""
    return attack.minimising() if isinstance(attack, CanMinimise) else attack


def climb(
    problem: Problem, points: Tensor, objective: Callable[[Tensor, Tensor], Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradient (n, *shape) and the value (n,) of an objective at some points, and the logits
    (n, classes) there.

    Raises NoGradientError, a ValueError, where the model gives no gradients, not even zeros.
    """
    points = points.detach().requires_grad_()
    logits = problem.logits(points)
    value = objective(logits, problem.y)
    return differentiate(value, points), value.detach(), logits.detach()


def differentiate(value: Tensor, points: Tensor, retain: bool = False) -> Tensor:
    """The gradient (n, *shape) of values (n,) at the points that they were computed from.

    `retain` keeps torch's graph for a further gradient. Raises NoGradientError where the values do
    not depend on the points in a way that torch can differentiate, or that fails.
    """
    gradient = None
    if value.requires_grad:
        try:
            (gradient,) = torch.autograd.grad(
                value.sum(), points, retain_graph=retain, allow_unused=True
            )
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            raise NoGradientError(
                f"the model's backward pass fails ({described(error)}): {_INSTEAD}"
            ) from error
    if gradient is None:
        raise NoGradientError(f"the model gives no gradients: {_INSTEAD}")
    # Square roots and norms at 0 give NaN to some pixels; the others still say where to go.
    return gradient.nan_to_num(0, 0, 0)
