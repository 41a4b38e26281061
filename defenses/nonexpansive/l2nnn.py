"""How classifiers of L2-nonexpansive networks are trained (Qian and Wegman 2019, "L2-nonexpansive
neural networks", L2NNN below)."""

import math
from dataclasses import dataclass
from typing import ClassVar, cast

from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from attacks import ThreatModel
from defenses.networks.architectures import Shape
from defenses.nonexpansive.layers import penalties, set_strict, weighted
from defenses.nonexpansive.nonexpansive_classifier import L2NonexpansiveClassifier
from defenses.recipes.adversarial_examples import TrainsOnExamples
from defenses.recipes.batches import Batch
from defenses.recipes.recipe import OptimizerName


def gap_loss(logits: Tensor, y: Tensor, z: float) -> Tensor:
    """The mean of log(1 - softmax(z * logits)_label) / z, a scalar (L2NNN, equation (6)).

    logits (n, classes), labels y (n,), int64. For large z, a sample that is predicted correctly
    counts with its negative confidence gap, and any other with 0.
    """
    scaled = z * logits
    # 1 - softmax would round to 0 where the label has nearly all of it.
    others = scaled.scatter(1, y[:, None], -math.inf).logsumexp(1)
    return (others - scaled.logsumexp(1)).mean() / z


def l2nnn_loss(
    logits: Tensor,
    y: Tensor,
    *,
    u: Tensor,
    v: Tensor | float,
    z: float,
    gamma: float,
    omega: float,
    distorted: Tensor | None = None,
) -> Tensor:
    """The loss of L2NNN, a scalar (section 2.4, equations (3) to (6)).

    logits, y     outputs of the networks (n, classes); labels (n,), int64.
    u, v          what logits are multiplied by: in (4) each by its u (classes,), in (5) all by v.
    z             softness of the confidence gap in (6).
    gamma, omega  weights of (5) and (6).
    distorted     logits (n, classes) of distorted inputs, for (4) alone; default: `logits`.
    """
    first = cross_entropy(u * (logits if distorted is None else distorted), y)
    return first + gamma * cross_entropy(v * logits, y) + omega * gap_loss(logits, y, z)


@dataclass(frozen=True, kw_only=True)
class L2NNN(TrainsOnExamples):
    """A classifier of L2-nonexpansive networks (Qian and Wegman 2019, section 2.4), with a
    certified L2 radius for each image.

    arch, multi, scaling  of the networks, see `L2NonexpansiveClassifier`; "default" is "mlp".
    gamma, omega, v, z    of the loss, see `l2nnn_loss`; v is trained where it is None.
    adversarial           distort the inputs of the loss's first term (the source's Model 4; without
                          it, Model 3). How is said by norm, eps, steps, step_size and warm_up, see
                          `defenses.recipes.adversarial_examples`; without it they have no effect.
    penalised             the fraction of the epochs, the first ones, in which weights are raw and
                          the penalty of equation (7), times `penalty`, holds them back. It is for
                          scaling "bound" alone; None: 0.5 there.

    The defaults suit MNIST; a small training set needs smaller batches. Raises ValueError for
    hyperparameters out of range.

    Differs from the source, by default: weights have orthonormal rows, which keep more of the
    distances than W / sqrt(b(W)) ("bound"); and the network is a single one, which certifies much
    more at equal accuracy under attack, where the source recommends one per label.
    """

    widen: float = 2.0
    epochs: int = 12
    batch: int = 512
    optimizer: OptimizerName = "adam"
    learning_rate: float = 6e-3
    weight_decay: float = 0.0
    schedule: str = "one-cycle"
    multi: bool = False
    scaling: str = "cayley"
    gamma: float = 1.0
    omega: float = 0.15
    v: float | None = None
    z: float = 8.0
    adversarial: bool = False
    penalty: float = 0.1
    penalised: float | None = None

    needs_float32: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.gamma >= 0 and self.omega >= 0 and self.penalty >= 0):
            raise ValueError("gamma, omega and penalty must be at least 0")
        if not self.z > 0 or (self.v is not None and not self.v > 0):
            raise ValueError("z and v must be above 0")
        if self.penalised is not None and not 0 <= self.penalised <= 1:
            raise ValueError(f"penalised must be in [0, 1], not {self.penalised}")
        if self.penalised and self.scaling != "bound":
            raise ValueError(f"penalised is for scaling bound alone, not {self.scaling}")

    def build(self, shape: Shape, classes: int) -> nn.Module:
        return L2NonexpansiveClassifier(
            "mlp" if self.arch == "default" else self.arch,
            shape,
            classes,
            multi=self.multi,
            widen=self.widen,
            scaling=self.scaling,
            v=self.v,
        )

    def trains_against(self, threat: ThreatModel | None) -> ThreatModel | None:
        return self.examples.trains_against(threat) if self.adversarial else None

    def begin_epoch(self, model: nn.Module, x: Tensor, y: Tensor, epoch: int) -> None:
        penalised = self.penalised
        if penalised is None:
            penalised = 0.5 if self.scaling == "bound" else 0.0
        set_strict(model, epoch >= penalised * self.epochs)

    def finish(self, model: nn.Module, x: Tensor, y: Tensor) -> None:
        set_strict(model, True)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        networks = cast(L2NonexpansiveClassifier, model)
        # Before the clean images, whose accuracy is then what the log shows.
        distorted = model(self.examples.mix(model, batch)) if self.adversarial else None
        loss = l2nnn_loss(
            model(batch.x),
            batch.y,
            u=networks.u,
            v=networks.v,
            z=self.z,
            gamma=self.gamma,
            omega=self.omega,
            distorted=distorted,
        )
        if all(layer.strict for layer in weighted(model)):
            return loss
        return loss + self.penalty * penalties(model)
