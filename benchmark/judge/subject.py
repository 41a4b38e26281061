"""A model that is evaluated: it is copied, frozen, checked, and asked for its classes."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

from attacks.generators import seeded
from benchmark.judge.reading import Called, Calling, Reading, as_called
from benchmark.judge.replica import copied, reseed, twin_of
from benchmark.judge.steadiness import IMAGES, Kind, UnsteadyError, call, differ, same
from defenses.certificates import HasCertificate

# "model" is the precision that a model has.
Precision = Literal["model", "float32", "float64", "bfloat16", "float16"]

# The defaults for randomised models; see `Terms`.
DRAWS, EXPECTATION = 50, 10

# The class that is recorded where logits tell none.
UNDEFINED = -1

# The streams of noise that seed what models draw when they are looked at, judged and attacked.
LOOKED_AT, _JUDGED, ATTACKED = ((2 << 16) + stream for stream in range(3))

T = TypeVar("T")


@dataclass(frozen=True)
class Terms:
    """What was asked for in how a model is judged.

    precision    of the model.
    reading      what a user says of its outputs.
    draws        how many fresh draws of a randomised model judge a point.
    expectation  how many draws attacks on it take the mean of in each step.
    seed         of what it draws.
    reject       the class by which a model rejects an image; None if it has none.
    scale        (*shape), float64, what points are multiplied by before the model is given them;
                 None: nothing.
    frozen       (*shape), bool, the pixels that attacks must not change; None: there are none.
    may_reject   whether rejecting a perturbed image does not count as misclassifying it. Rejecting
                 a clean image always does.
    """

    precision: Precision = "model"
    reading: Reading = field(default_factory=Reading)
    draws: int = DRAWS
    expectation: int = EXPECTATION
    seed: int = 0
    reject: int | None = None
    may_reject: bool = False
    scale: Tensor | None = None
    frozen: Tensor | None = None

    @property
    def allowed(self) -> int | None:
        """The class that a perturbed image may be given without being misclassified."""
        return self.reject if self.may_reject else None


USUAL = Terms()


@dataclass(frozen=True)
class Judgement:
    """The verdict on n points.

    predicted  (n,), their classes; UNDEFINED where logits are NaN. Of a randomised model, the class
               of most draws.
    wrong      (n,), whether they are misclassified; of a randomised model, in most draws.
    rate       (n,), float64, the share of draws in which they are misclassified: 0 or 1 unless the
               model is randomised.
    trial      (n,), the same over other draws, by which the worst of several points is chosen. The
               rate of the point that is worst by `trial` has no bias from the choice.
    """

    predicted: Tensor
    wrong: Tensor
    rate: Tensor
    trial: Tensor

    @classmethod
    def of(cls, predicted: Tensor, wrong: Tensor) -> "Judgement":
        """The verdict of a model that is not randomised."""
        rate = wrong.double()
        return cls(predicted, wrong, rate, rate)

    @property
    def found(self) -> Tensor:
        """(n,), whether they are misclassified in any draw."""
        return (self.rate > 0) | (self.trial > 0)

    def only(self, within: Tensor) -> "Judgement":
        """The same verdict, with the points that are not `within` (n,) the threat never wrong."""
        rate, trial = (torch.where(within, share, 0.0) for share in (self.rate, self.trial))
        return replace(self, wrong=self.wrong & within, rate=rate, trial=trial)


@dataclass
class Subject:
    """A frozen copy of a model, which judges points.

    model      the copy, in eval mode, as it is called with points of `dtype`. Its parameters take
               no gradients, which would cost an attack that calls backward() time.
    device, dtype  of the points.
    precision  of the model, as tables name it.
    terms      what was asked for.
    calling    how the copy is called.
    slack      how far logits may differ by rounding, as a part of the largest.
    telling    (classes,), bool, the logits among which that is; None: all.
    usual      how large these are at clean images.
    has_twin   whether the model can be run in float64 as the same function: see `twin`.
    is_random  whether it is randomised: points are then judged by several draws.
    is_stateful  whether calls change it, so that each block is judged by a fresh copy.
    flags      what was noticed about the model.

    `model` is never handed to an attack, so that no attack can change how it is judged; attacks get
    a copy, the `victim`.
    """

    model: nn.Module
    device: torch.device
    dtype: torch.dtype
    precision: str
    terms: Terms
    calling: Calling
    slack: float = 0.0
    telling: Tensor | None = None
    usual: float = 0.0
    has_twin: bool = False
    is_random: bool = False
    is_stateful: bool = False
    flags: set[str] = field(default_factory=set)

    @property
    def traits(self) -> dict[str, int | bool]:
        """What beside the model and its precision determines verdicts; empty for most models."""
        traits: dict[str, int | bool] = {}
        if self.calling.size is not None:
            traits["at-once"] = self.calling.size
        if self.terms.allowed is not None:
            traits["allowed"] = self.terms.allowed
        if self.is_random:
            traits |= {"draws": self.terms.draws, "judge-seed": self.terms.seed}
            traits["expectation"] = self.terms.expectation
        elif not self.has_twin and self.precision == "float32":
            traits["twin"] = False
        return traits

    @property
    def expectation(self) -> int:
        """How many draws attacks take the mean of."""
        return self.terms.expectation if self.is_random else 1

    def victim(self) -> nn.Module:
        """A copy of the model for an attack, which may change it."""
        return copied(self.model)

    def twin(self) -> nn.Module:
        """The model in float64. It is made when it is needed, since it takes twice the memory of a
        model in float32."""
        calling = replace(self.calling, takes=torch.float64, gives=torch.float64)
        return as_called(twin_of(self._bare), calling)

    @property
    def _bare(self) -> nn.Module:
        """The model itself, without what calls it."""
        return self.model.model if isinstance(self.model, Called) else self.model

    def judge(
        self,
        points: Tensor,
        y: Tensor,
        number: Tensor | None = None,
        calls: int = 0,
        allowed: int | None = None,
    ) -> Judgement:
        """Classify points (n, *shape) with labels y (n,), and say which are misclassified.

        number  (n,), the numbers of the samples, whose first seeds a randomised model.
        calls   how many calls of a model that changes with them an attack has made; the draws that
                judge are those after them.
        allowed  a class that is not wrong beside the labels.

        The model is run in float64 too where it has a twin, else twice, in different company. A
        misclassification that only one of the two sees is due to rounding, and does not count.
        Logits that are NaN count as wrong. Raises UnsteadyError where the two differ by more than
        rounding.
        """
        points = points.to(self.dtype)
        if self.is_random:
            return self._judge_by_draws(points, y, number, calls, allowed)
        model = copied(self.model) if self.is_stateful else self.model
        logits = call(model, points)
        # With a twin, half of them is enough to see whether the model is steady.
        part = max(IMAGES, len(points) // 2) if self.has_twin else len(points)
        again = self._in_other_company(model, points[-part:])
        if differ(logits[-part:], again, self.slack, self.telling, self.usual):
            drawn = not same(logits, call(model, points))
            raise UnsteadyError("random" if drawn else "batch-dependent")
        predicted = classes_of(logits)
        wrong = _wrong(predicted, y, allowed)
        doubtful = wrong & (predicted != UNDEFINED)
        if not self.has_twin:
            wrong = wrong & (~doubtful | _wrong(classes_of(again), y, allowed))
        elif bool(doubtful.any()):
            in_twin = classes_of(call(self.twin(), points[doubtful].double()))
            wrong_in_twin = _wrong(in_twin, y[doubtful], allowed)
            wrong = wrong.masked_scatter(doubtful, wrong_in_twin)
        return Judgement.of(predicted, wrong)

    def _in_other_company(self, model: nn.Module, points: Tensor) -> Tensor:
        """The logits of points that are forwarded in other order and, if the model takes them, in
        smaller batches."""
        if self.calling.size is not None or len(points) < 2:
            return call(model, points)
        turned = points.flip(0)
        try:
            logits = torch.cat([call(model, part) for part in turned.chunk(2)])
        except torch.OutOfMemoryError:
            raise
        except Exception:
            logits = call(model, turned)
        return logits.flip(0)

    def _judge_by_draws(
        self,
        points: Tensor,
        y: Tensor,
        number: Tensor | None,
        calls: int,
        allowed: int | None,
    ) -> Judgement:
        model, draws = self.model, self.terms.draws
        if number is None:
            number = torch.arange(len(points), device=points.device)
        with seeded(self.terms.seed, number, _JUDGED) as seed:
            if self.is_stateful:
                model = self.victim()
                for _ in range(calls):
                    call(model, points)
            reseed(model, seed)
            classes = torch.stack([classes_of(call(model, points)) for _ in range(2 * draws)])
        wrong = _wrong(classes, y, allowed).double()
        trial, rate = wrong[:draws].mean(0), wrong[draws:].mean(0)
        return Judgement(classes[draws:].mode(0).values, rate > 0.5, rate, trial)

    def certify(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Ask the model for its classes at images x (n, *shape), and for certified radii.

        The model is run in float64 where it can be. Returns the classes (n,), and the L2 radii
        (n,), float64, within which the model certifies that the class does not change. Raises
        TypeError where the model has no certificate, and ValueError where what it returns are not
        radii.
        """
        model, dtype = self.model, self.dtype
        if self.has_twin:
            model, dtype = self.twin(), torch.float64
        elif self.is_stateful or self.is_random:
            model = copied(model)
        if not isinstance(model, HasCertificate):
            raise TypeError("the model has no certified_radius")
        x = x.to(dtype)
        with (
            seeded(self.terms.seed, torch.zeros(1, dtype=torch.int64), _JUDGED) as seed,
            torch.no_grad(),
        ):
            reseed(model, seed)
            radius = model.certified_radius(x.clone())
            classes = classes_of(call(model, x))
        if not isinstance(radius, Tensor) or radius.shape != (len(x),):
            returned = tuple(radius.shape) if isinstance(radius, Tensor) else type(radius).__name__
            raise ValueError(
                f"certified_radius must give ({len(x)},) for as many images: {returned}"
            )
        bad = ~(radius >= 0)  # NaN is not at least 0 either
        if bool(bad.any()):
            raise ValueError(f"a certified radius must be at least 0, not {float(radius[bad][0])}")
        return classes, radius.double()

    def unsteady(self, kind: Kind) -> "Subject":
        """The subject, treated as what it turned out to be while it was judged."""
        # Alone, images have no company: what differs then is drawn.
        return self.treated("random" if self.calling.size == 1 else kind)

    def treated(self, kind: Kind) -> "Subject":
        """The subject, treated as random, or as one whose images are forwarded one at a time."""
        if kind == "random":
            flags = self.flags | {"non-deterministic"}
            flags.discard("float32-only")
            return replace(self, is_random=True, has_twin=False, flags=flags)
        calling = replace(self.calling, size=1)
        model, flags = as_called(self._bare, calling), self.flags | {"batch-dependent"}
        return replace(self, model=model, has_twin=False, calling=calling, flags=flags)


def classes_of(logits: Tensor) -> Tensor:
    """The classes (n,) of logits (n, classes), UNDEFINED where one is NaN, or where several share
    the lead with infinity, plus or minus."""
    undefined = logits.isnan().any(1) | (logits.isposinf().sum(1) > 1) | logits.isneginf().all(1)
    return torch.where(undefined, UNDEFINED, logits.argmax(1))


def _wrong(predicted: Tensor, y: Tensor, allowed: int | None) -> Tensor:
    """Which predicted classes (..., n) are neither the labels (n,) nor the allowed class."""
    wrong = predicted != y
    return wrong if allowed is None else wrong & (predicted != allowed)


def until_steady(subject: Subject, work: Callable[[Subject], T]) -> T:
    """What `work` returns for a subject, done again if that turns out to be random or to depend on
    the batch while it is judged."""
    while True:
        try:
            return work(subject)
        except UnsteadyError as found:
            subject = subject.unsteady(found.kind)
