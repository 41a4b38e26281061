"""Other aggregations of subtasks that are trained already: Gaussian naive Bayes, a Markov random
field, and belief functions with other parameters (Qian 2021, "Robustness via fractal divide and
fractal aggregation", section 4.2, table 3)."""

import math
from dataclasses import dataclass
from typing import ClassVar, cast, get_args

import torch
from torch import Tensor, nn

from defenses.fractal.belief import Rule
from defenses.fractal.ensemble import BeliefEnsemble
from defenses.fractal.output_ensemble import OutputEnsemble
from defenses.fractal.tuning import RELIABILITIES, SLOPES, choose, descend, set_uniform
from defenses.networks.architectures import Shape
from defenses.recipes.derived import Derived

# The least variance of a feature, which is in [0, 1]: that of a standard deviation of 0.01.
_LEAST_VARIANCE = 1e-4

# Steps of an MRF's training, and the rate that they begin with.
_STEPS, _RATE = 500, 0.5


class QuadraticEnsemble(OutputEnsemble):
    """A classifier whose logit of each label is a sum over the subtasks of a quadratic function of
    x_i in equation (3), which has the slopes of the ensemble that it is made from.

    square, linear (k, classes) and constant (classes,) are the coefficients, all 0 until `fit` sets
    them.
    """

    square: Tensor
    linear: Tensor
    constant: Tensor

    def __init__(self, source: BeliefEnsemble) -> None:
        super().__init__()
        self.source, self.classes = source, source.classes
        self.slope = nn.Parameter(source.slope.detach().clone())
        zeros = torch.zeros(len(self.slope), self.classes)
        self.register_buffer("square", zeros)
        self.register_buffer("linear", zeros.clone())
        self.register_buffer("constant", zeros[0].clone())

    def fit(self, square: Tensor, linear: Tensor, constant: Tensor) -> None:
        """Set the coefficients."""
        self.square.copy_(square)
        self.linear.copy_(linear)
        self.constant.copy_(constant)

    def outputs(self, x: Tensor) -> Tensor:
        return self.source.outputs(x)

    def features(self, outputs: Tensor) -> Tensor:
        """x (n, k) of outputs G (n, k): equation (3)."""
        return torch.sigmoid(self.slope * outputs)

    def aggregate(self, outputs: Tensor) -> Tensor:
        x = self.features(outputs)
        return self.constant + x @ self.linear + x.square() @ self.square

    def worst_case(self, outputs: Tensor, label: Tensor, offset: Tensor) -> Tensor:
        """As `OutputEnsemble.worst_case`, 0 for the label itself, and exact: its lead over another
        is a sum of quadratic functions, each least at an end of its interval or at its vertex."""
        low, high = (self.features(outputs + sign * offset[:, None])[:, None] for sign in (-1, 1))
        # The coefficients of the lead of the label over each other.
        square, linear = (c.T[label][:, None] - c.T for c in (self.square, self.linear))
        tiny = torch.finfo(low.dtype).tiny
        vertex = torch.clamp(-linear / (2 * square).clamp_min(tiny), low, high)
        ends = torch.minimum((square * low + linear) * low, (square * high + linear) * high)
        least = torch.minimum(ends, (square * vertex + linear) * vertex)
        return self.constant - self.constant[label][:, None] - least.sum(2)


@dataclass(frozen=True, kw_only=True)
class Aggregation(Derived):
    """The subtasks of a neural belief reasoner or fractal classifier, aggregated in another way.

    source  the nbr or fractal whose subtasks are taken, as they are.
    """

    source: str

    parts: ClassVar[tuple[str, ...]] = ("source",)
    needs_float32: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.epochs:
            raise ValueError("the subtasks stay as they are: leave epochs at 0")

    def derive(self, shape: Shape, classes: int, source: nn.Module) -> nn.Module:
        if not isinstance(source, BeliefEnsemble):
            raise ValueError(f"source must name an nbr or a fractal, not {type(source).__name__}")
        return self.aggregated(source)

    def aggregated(self, source: BeliefEnsemble) -> nn.Module:
        """The classifier made from the ensemble; `finish` fits it to the training set."""
        return QuadraticEnsemble(source)


@dataclass(frozen=True, kw_only=True)
class GNB(Aggregation):
    """Gaussian naive Bayes on the features (3) of all subtasks: logits are log joint densities.

    Means, variances and priors are those of the training set; a variance is at least 1e-4.

    Unstated in the source, which has two labels only: a feature counts for every label, also for
    those that are not in its frame, because joint densities can only be compared if they are over
    the same features.
    """

    def finish(self, model: nn.Module, x: Tensor, y: Tensor) -> None:
        ensemble = cast(QuadraticEnsemble, model)
        features = ensemble.features(ensemble.outputs_of(x)).double()
        has_label = nn.functional.one_hot(y, ensemble.classes).T.double()
        counts = has_label.sum(1, keepdim=True)
        if not bool((counts > 0).all()):
            raise ValueError("gnb: each label needs a training sample")
        mean = has_label @ features / counts
        square_mean = has_label @ features.square() / counts
        variance = (square_mean - mean.square()).clamp_min(_LEAST_VARIANCE)
        # The logarithm of a normal density, as a quadratic function of the feature.
        constant = -0.5 * (mean.square() / variance + (2 * math.pi * variance).log()).sum(1)
        constant += (counts / len(y)).log().squeeze(1)
        ensemble.fit((-0.5 / variance).T, (mean / variance).T, constant)


@dataclass(frozen=True, kw_only=True)
class MRF(Aggregation):
    """A Markov random field on the features (3), which is a log-linear model: it has a weight for
    each subtask and label of its frame, and one for each label.

    offset  adversarial offset. The weights minimise, by Adam in float64, the cross-entropy on the
            training set when each output is moved by the offset in the direction that helps the
            competing label the most. This loss is convex.

    Raises ValueError for a negative offset.

    Unstated in the source: which potentials there are, whether labels have weights of their own,
    and the loss, which it says is that of another paper.
    """

    offset: float

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_offset(self.offset)

    def finish(self, model: nn.Module, x: Tensor, y: Tensor) -> None:
        ensemble = cast(QuadraticEnsemble, model)
        outputs = ensemble.outputs_of(x)
        low, high = (ensemble.features(outputs + sign * self.offset).double() for sign in (-1, 1))
        # For each label, its samples' features: the middles and the half widths of their intervals.
        labels = [label for label in range(ensemble.classes) if bool((y == label).any())]
        intervals = {
            label: (((low + high) / 2)[y == label], ((high - low) / 2)[y == label])
            for label in labels
        }
        in_frame = (ensemble.source.sides != 0).double()
        linear, constant = torch.zeros_like(in_frame), torch.zeros_like(in_frame[0])

        def loss() -> None:
            total = torch.zeros_like(constant[0])
            for label, (middle, reach) in intervals.items():
                ahead = (linear * in_frame)[:, label, None] - linear * in_frame
                lead = middle @ ahead - reach @ ahead.abs() + constant[label] - constant
                total = total + lead.neg().logsumexp(1).sum()
            torch.autograd.backward(total / len(y))

        descend([linear, constant], loss, _STEPS, _RATE)
        ensemble.fit(torch.zeros_like(in_frame), linear * in_frame, constant)


@dataclass(frozen=True, kw_only=True)
class Belief(Aggregation):
    """Belief functions on the subtasks of another defense, with another slope, reliability or rule.

    slope, reliability  s and b of all subtasks; None: chosen on the training set from a small grid,
                        by how many images are predicted and kept for certain under the offset.
    rule                how evidence is combined over frames, whatever the other defense's rule is.
    offset              adversarial offset; it is needed where s or b is to be chosen.

    Raises ValueError for values out of range, and for a missing offset.
    """

    slope: float | None = None
    reliability: float | None = None
    rule: Rule = "minimum"
    offset: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.slope is not None and not self.slope > 0:
            raise ValueError(f"slope must be above 0, not {self.slope}")
        if self.reliability is not None and not 0 < self.reliability <= 1:
            raise ValueError(f"reliability must be in (0, 1], not {self.reliability}")
        if self.rule not in get_args(Rule):
            raise ValueError(f"unknown rule {self.rule!r}: use one of {', '.join(get_args(Rule))}")
        if self.offset is not None:
            _check_offset(self.offset)
        elif None in (self.slope, self.reliability):
            raise ValueError("give slope and reliability, or an offset to choose them by")

    def aggregated(self, source: BeliefEnsemble) -> nn.Module:
        source.rule = self.rule
        set_uniform(source, self.slope or SLOPES[0], self.reliability or RELIABILITIES[0])
        return source

    def finish(self, model: nn.Module, x: Tensor, y: Tensor) -> None:
        if self.offset is None or None not in (self.slope, self.reliability):
            return
        ensemble = cast(BeliefEnsemble, model)
        slopes = SLOPES if self.slope is None else (self.slope,)
        reliabilities = RELIABILITIES if self.reliability is None else (self.reliability,)
        outputs = ensemble.outputs_of(x)
        choose(ensemble, outputs, y, self.offset, slopes, reliabilities)


def _check_offset(offset: float) -> None:
    if not offset >= 0:
        raise ValueError(f"offset must be at least 0, not {offset}")
