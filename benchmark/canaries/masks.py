"""Networks whose robustness is a mask or a mistake, each made from a plain one, its twin."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

Change = Callable[[Tensor], Tensor]

# The parts of a twin, which a mask may be put between.
_FEATURES = 3


@dataclass(frozen=True)
class Canary:
    """A network that hides how easily it is broken.

    about    one line about how.
    build    from twins, plain networks of the same kind, to the network; most need the first alone.
    changes  whether its function is another one than the twin's, so that it may be a little more
             or less robust.
    """

    about: str
    build: Callable[[Sequence[nn.Sequential]], nn.Module]
    changes: bool = False


def _same(z: Tensor) -> Tensor:
    return z


class Masked(nn.Module):
    """A network with something before it, in the midst of it, or after it."""

    def __init__(
        self,
        twin: nn.Sequential,
        before: Change = _same,
        within: Change = _same,
        after: Change = _same,
    ) -> None:
        super().__init__()
        layers = list(twin)
        self.features = nn.Sequential(*layers[:_FEATURES])
        self.head = nn.Sequential(*layers[_FEATURES:])
        self.before, self.within, self.after = before, within, after

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.head(self.within(self.features(self.before(x)))))


def _mask(about: str, changes: bool = False, **where: Change) -> Canary:
    return Canary(about, lambda twins: Masked(twins[0], **where), changes)


def _centred(logits: Tensor) -> Tensor:
    """Logits less the middle of the top two, so that a sigmoid does not make them equal."""
    return logits - logits.topk(2, dim=1).values.mean(1, keepdim=True)


def _quantised(levels: float) -> Change:
    return lambda z: (levels * z).round() / levels


def _thermometer(x: Tensor) -> Tensor:
    """How many of 16 levels each pixel is above, as a part of them (Buckman et al. 2018)."""
    levels = torch.arange(16, device=x.device, dtype=x.dtype) / 16
    return (x.unsqueeze(-1) > levels).to(x.dtype).mean(-1)


def _cosines(size: int) -> Tensor:
    """The orthonormal discrete cosine transform, (size, size)."""
    at = torch.arange(size, dtype=torch.float32)
    rows: Tensor = torch.cos(torch.pi * (at + 0.5) * at[:, None] / size) * (2 / size) ** 0.5
    rows[0] /= 2**0.5
    return rows


def _compressed(x: Tensor) -> Tensor:
    """Each image's cosine coefficients, rounded as JPEG rounds them."""
    down, across = (_cosines(size).to(x) for size in x.shape[-2:])
    coefficients = down @ x @ across.T
    return down.T @ ((8 * coefficients).round() / 8) @ across


def _winners(h: Tensor) -> Tensor:
    """The larger half of the units of each sample; the others are 0 (Xiao et al. 2019)."""
    flat = h.flatten(1)
    least = flat.topk(max(1, flat.shape[1] // 2), dim=1).values[:, -1:]
    return torch.where(flat >= least, flat, 0.0).view_as(h)


class _Backward(torch.autograd.Function):
    """The identity, whose gradient is spoilt."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, spoil: Change) -> Tensor:
        ctx.spoil = spoil
        return z.clone()

    @staticmethod
    def backward(ctx: Any, *gradient: Tensor) -> tuple[Tensor, None]:
        spoilt: Tensor = ctx.spoil(gradient[0])
        return spoilt, None


def _spoilt(spoil: Change) -> Change:
    def change(z: Tensor) -> Tensor:
        result: Tensor = _Backward.apply(z, spoil)  # type: ignore[no-untyped-call]
        return result

    return change


def _shifted(x: Tensor) -> Tensor:
    """The images, moved by up to half a pixel at random, as resizing at random moves them."""
    for axis in (-2, -1):
        x = x.lerp(x.roll(1, axis), 0.5 * float(torch.rand(())))
    return x


class Voting(nn.Module):
    """Networks of which each has one vote."""

    def __init__(self, twins: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(twins)

    def forward(self, x: Tensor) -> Tensor:
        logits = [member(x) for member in self.members]
        votes = [functional.one_hot(of.argmax(1), of.shape[1]).to(x.dtype) for of in logits]
        # The first decides a tie.
        return torch.stack(votes).sum(0) + 0.5 * votes[0]


class Detecting(nn.Module):
    """A network that gives images that look perturbed the class of their smoothed selves."""

    def __init__(self, twin: nn.Module) -> None:
        super().__init__()
        self.twin = twin

    def forward(self, x: Tensor) -> Tensor:
        smooth = functional.avg_pool2d(functional.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)
        suspicious = (x - smooth).abs().flatten(1).mean(1, keepdim=True) > 0.21
        return torch.where(suspicious, self.twin((x + smooth) / 2), self.twin(x))


class Lying(nn.Module):
    """A network with a certificate that proves nothing."""

    def __init__(self, twin: nn.Module) -> None:
        super().__init__()
        self.twin = twin

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.twin(x)
        return logits

    def certify(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.twin(x)
        lead = logits.topk(2, dim=1).values
        return logits.argmax(1), lead[:, 0] - lead[:, 1]


CANARIES: dict[str, Canary] = {
    "sigmoid": _mask(
        "saturating sigmoids of the logits", after=lambda z: torch.sigmoid(100 * _centred(z))
    ),
    "softmax": _mask("probabilities that are 0 or 1", after=lambda z: (100 * z).softmax(1)),
    "quantised-input": _mask("pixels of 16 levels", True, before=_quantised(16)),
    "quantised-features": _mask("features in steps", True, within=_quantised(8)),
    "quantised-logits": _mask("whole numbers as logits", True, after=_quantised(1)),
    "thermometer": _mask("pixels as counts of levels", True, before=_thermometer),
    "jpeg": _mask("rounded cosine coefficients", True, before=_compressed),
    "argmax": _mask(
        "decisions in place of logits",
        after=lambda z: functional.one_hot(z.argmax(1), z.shape[1]).to(z.dtype),
    ),
    "winner-take-all": _mask("the larger half of the units alone", True, within=_winners),
    "shattered": _mask(
        "pixels with a fast sine on them", before=lambda x: x + 1e-3 * torch.sin(1e5 * x)
    ),
    "reversed": _mask("gradients of the other sign", before=lambda x: 2 * x.detach() - x),
    "reversed-backward": _mask("a backward pass that turns the sign", before=_spoilt(lambda g: -g)),
    "zero": _mask("no gradient", before=lambda x: x.detach() + 0 * x),
    "noisy": _mask(
        "gradients under noise",
        before=_spoilt(lambda g: g + 10 * g.abs().amax() * torch.randn_like(g)),
    ),
    "nan": _mask("gradients that are NaN", before=_spoilt(lambda g: g * torch.nan)),
    "large-logits": _mask("logits times 10,000", after=lambda z: 1e4 * z),
    "distilled": _mask(
        "logits of a distillation at temperature 100", after=lambda z: (100 * z).log_softmax(1)
    ),
    "random-input": _mask(
        "noise on the pixels", True, before=lambda x: x + 0.1 * torch.randn_like(x)
    ),
    "random-shift": _mask("images moved at random", True, before=_shifted),
    "dropout": _mask(
        "dropout at test time", True, within=lambda h: functional.dropout(h, 0.2, True)
    ),
    "votes": Canary("three networks that vote", lambda twins: Voting(twins[:3]), True),
    "detector": Canary("a detector of perturbations", lambda twins: Detecting(twins[0]), True),
    "lying-certificate": Canary("a certificate that lies", lambda twins: Lying(twins[0])),
}
