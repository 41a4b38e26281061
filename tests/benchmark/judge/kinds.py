"""Models of every kind that users bring, each the same function as a plain network."""

import copy
import functools
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from tests.benchmark.judge.plain import Around, Plain


@dataclass(frozen=True)
class Kind:
    """A kind of model.

    make     from a plain network, and some images, the model of this kind.
    options  of `evaluate`.
    flags    that must be raised; others must not.
    around   a context in which `evaluate` is called.
    misled   whether attacks find less on it, which the flags must say.
    """

    make: Callable[[Plain, Tensor], Any]
    options: dict[str, Any] = field(default_factory=dict)
    flags: frozenset[str] = frozenset()
    around: Callable[[], Any] | None = None
    misled: bool = False


class _InPlace(Around):
    def forward(self, x: Tensor) -> Tensor:
        x.mul_(2).div_(2)
        logits: Tensor = self.net(x)
        return logits


class _Destroying(Around):
    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x.clone())
        x.data.zero_()
        return logits


class _Caching(Around):
    def forward(self, x: Tensor) -> Tensor:
        self.seen: Tensor = self.net.hidden(x.flatten(1))
        self.history = [*getattr(self, "history", [])[-3:], {"logits": self.net(x)}]
        return self.history[-1]["logits"]


class _Reusing(Around):
    """It writes all its logits into one tensor, where nobody differentiates."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__(net)
        self.register_buffer("out", torch.zeros(4096, 3))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x)
        if torch.is_grad_enabled():
            return logits
        self.out[: len(x)] = logits
        return self.out[: len(x)]


class _Holding(nn.Module):
    """A function among its attributes holds its parts."""

    def __init__(self, net: Plain) -> None:
        super().__init__()
        self.net, self.drop = net, nn.Dropout(0.9)
        self.call = lambda x: self.net(self.drop(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.call(x)


def _patched(net: Plain, x: Tensor) -> nn.Module:
    """Its forward is replaced by a decorated function that calls the old one."""
    model = copy.deepcopy(net)
    old = model.forward

    @functools.wraps(old)
    def forward(x: Tensor) -> Tensor:
        return old(x)

    model.forward = forward  # type: ignore[method-assign]
    return model


class _Extracting(Around):
    """A hook keeps the features of a layer, and the forward goes on from them."""

    def __init__(self, net: Plain) -> None:
        super().__init__(copy.deepcopy(net))
        kept: dict[str, Tensor] = {}
        self.kept, self.steps = kept, [lambda: self.net.last(kept["hidden"].relu())]

        def keep(module: nn.Module, inputs: Any, output: Tensor) -> None:
            kept["hidden"] = output

        self.net.hidden.register_forward_hook(keep)

    def forward(self, x: Tensor) -> Tensor:
        self.net.hidden(x.flatten(1))
        logits: Tensor = self.steps[0]()
        return logits


def _extracting(net: Plain, x: Tensor) -> nn.Module:
    model = _Extracting(net)
    model(x[:1])  # leaves the features of one image behind
    return model


class _Checkpointed(Around):
    reentrant = True

    def forward(self, x: Tensor) -> Tensor:
        hidden = checkpoint(self.net.hidden, x.flatten(1), use_reentrant=self.reentrant)
        logits: Tensor = self.net.last(hidden.relu())
        return logits


class _CheckpointedAnew(_Checkpointed):
    reentrant = False


class _Straight(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return gradient.clone()


class _Seeking(Around):
    """It takes the gradient of something with respect to the image, and adds nothing of it."""

    def forward(self, x: Tensor) -> Tensor:
        x.requires_grad_()
        (slope,) = torch.autograd.grad(x.square().sum(), x, create_graph=True)
        logits: Tensor = self.net(x + 0 * slope)
        return logits


class _Complex(Around):
    """The first layer in the complex plane: the imaginary parts cancel in the product."""

    def __init__(self, net: Plain) -> None:
        super().__init__(net)
        self.last, self.bias = net.last, nn.Parameter(net.hidden.bias.detach().clone())
        self.weight = nn.Parameter(net.hidden.weight.detach() * (0.6 + 0.8j))
        self.register_buffer("turn", torch.tensor(0.6 - 0.8j))

    def forward(self, x: Tensor) -> Tensor:
        product = x.flatten(1).to(self.weight.dtype) @ self.weight.T
        logits: Tensor = self.last(((product * self.turn).real + self.bias).relu())
        return logits


class _Integers(Around):
    """Its pixels are taken in an order that an integer buffer holds."""

    def __init__(self, net: Plain) -> None:
        super().__init__(copy.deepcopy(net))
        self.register_buffer("order", torch.randperm(net.hidden.in_features))
        with torch.no_grad():
            self.net.hidden.weight.copy_(net.hidden.weight[:, self.order])

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x.flatten(1)[:, self.order])
        return logits


class _Viewing(Around):
    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x.view(len(x), -1))
        return logits


class _Few(Around):
    """It takes at most four images at once."""

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > 4:
            raise ValueError("too many")
        logits: Tensor = self.net(x)
        return logits


class _Centred(Around):
    """It adds to each image how far the mean of its batch is from grey."""

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(
            x + (x.mean() - x.flatten(1).mean(1)).view(-1, *[1] * (x.dim() - 1))
        )
        return logits


class _Noisy(Around):
    """Noise that is far too small to change a verdict."""

    source = "torch"

    def forward(self, x: Tensor) -> Tensor:
        if self.source == "torch":
            noise = torch.randn_like(x)
        elif self.source == "numpy":
            noise = torch.from_numpy(np.random.randn(*x.shape)).to(x)
        elif self.source == "python":
            noise = torch.full_like(x, random.gauss(0, 1))
        elif self.source == "own":
            noise = torch.randn(x.shape, generator=self.generator).to(x)
        else:
            self.count.add_(1)
            noise = torch.sin(self.count.to(x) * torch.ones_like(x))
        logits: Tensor = self.net(x + 1e-3 * noise)
        return logits


def _noisy(source: str) -> Callable[[Plain, Tensor], nn.Module]:
    def make(net: Plain, x: Tensor) -> nn.Module:
        model = _Noisy(net)
        model.source = source
        if source == "own":
            model.generator = torch.Generator().manual_seed(1)
        if source == "buffer":
            model.register_buffer("count", torch.zeros((), dtype=torch.int64))
        return model

    return make


def _hooked(net: Plain, x: Tensor) -> nn.Module:
    model = copy.deepcopy(net)
    with torch.no_grad():
        model.hidden.weight.div_(2)
        model.hidden.bias.div_(2)
    model.hidden.register_forward_hook(lambda module, inputs, output: 2 * output)
    return model


def _weights_normed_as_before(net: Plain, x: Tensor) -> nn.Module:
    model = copy.deepcopy(net)
    nn.utils.weight_norm(model.hidden)
    model(x.requires_grad_(False))  # leaves a weight with a history among the attributes
    return model


def _parametrised(norm: Callable[..., nn.Module]) -> Callable[[Plain, Tensor], nn.Module]:
    def make(net: Plain, x: Tensor) -> nn.Module:
        model = copy.deepcopy(net)
        norm(model.hidden)
        return model.eval()

    return make


def _spectral(net: Plain, x: Tensor) -> nn.Module:
    """The first layer divided by its largest singular value, and the last multiplied by it."""
    model = copy.deepcopy(net)
    parametrizations.spectral_norm(model.hidden, n_power_iterations=20)
    model.eval()
    with torch.no_grad():
        largest = torch.linalg.matrix_norm(net.hidden.weight, 2)
        model.hidden.bias.div_(largest)
        model.last.weight.mul_(largest)
    return model


def _part_in_training(net: Plain, x: Tensor) -> nn.Module:
    net.hidden.train()
    return net


def _exported(net: Plain, x: Tensor, **shapes: Any) -> Any:
    return torch.export.export(net, (x,), **shapes)


def _scaled(first: float, last: float) -> Callable[[Plain, Tensor], nn.Module]:
    """Weights far from 1: those of the first layer, and those of the last."""

    def make(net: Plain, x: Tensor) -> nn.Module:
        model = copy.deepcopy(net)
        with torch.no_grad():
            for layer, factor in ((model.hidden, first), (model.last, last)):
                layer.weight.mul_(factor)
                layer.bias.mul_(factor)
        return model

    return make


def _around(**parts: Any) -> Callable[[Plain, Tensor], nn.Module]:
    return lambda net, x: Around(net, **parts)


class _Autocast(Around):
    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits: Tensor = self.net(x)
        return logits


def _unread(z: Tensor) -> Tensor:
    return torch.cat([z, torch.full_like(z[:, :1], -torch.inf)], 1)


_COARSE = frozenset({"coarse-logits", "rounding", "large-eps"})
_RANDOM = frozenset({"non-deterministic"})

KINDS: dict[str, Kind] = {
    "plain": Kind(lambda net, x: net),
    "in place": Kind(lambda net, x: _InPlace(net)),
    "destroys its images": Kind(lambda net, x: _Destroying(net)),
    "caches tensors": Kind(lambda net, x: _Caching(net)),
    "writes logits into one tensor": Kind(lambda net, x: _Reusing(net)),
    "holds itself in a function": Kind(lambda net, x: _Holding(net)),
    "patched forward": Kind(_patched),
    "a hook keeps features": Kind(_extracting),
    "compiled": Kind(lambda net, x: torch.compile(net)),
    "part compiled": Kind(lambda net, x: Around(torch.compile(net))),
    "scripted": Kind(lambda net, x: torch.jit.script(net)),
    "traced": Kind(lambda net, x: torch.jit.trace(net, x)),
    "frozen": Kind(
        lambda net, x: torch.jit.freeze(torch.jit.script(net)), flags=frozenset({"float32-only"})
    ),
    "exported": Kind(
        lambda net, x: _exported(net, x, dynamic_shapes=({0: torch.export.Dim("n")},)),
    ),
    "exported for one batch size": Kind(_exported),
    "exported for one image": Kind(lambda net, x: _exported(net, x[:1])),
    "data parallel": Kind(lambda net, x: nn.DataParallel(net).eval()),
    "spectral norm": Kind(_spectral),
    "weight norm": Kind(_parametrised(parametrizations.weight_norm)),
    "weight norm by hooks": Kind(_weights_normed_as_before),
    "hooks": Kind(_hooked),
    "checkpoints": Kind(lambda net, x: _CheckpointedAnew(net)),
    "reentrant checkpoints": Kind(lambda net, x: _Checkpointed(net)),
    "own autograd function": Kind(_around(before=_Straight.apply)),
    "uses gradients": Kind(lambda net, x: _Seeking(net)),
    "float64": Kind(lambda net, x: copy.deepcopy(net).double()),
    "bfloat16": Kind(lambda net, x: copy.deepcopy(net).bfloat16()),
    "float16": Kind(lambda net, x: copy.deepcopy(net).half()),
    "autocast": Kind(lambda net, x: _Autocast(net), flags=frozenset({"float32-only"})),
    "float64 inside": Kind(
        lambda net, x: Around(copy.deepcopy(net).double(), Tensor.double, Tensor.float)
    ),
    "complex": Kind(lambda net, x: _Complex(net)),
    "integer buffers": Kind(lambda net, x: _Integers(net)),
    "views": Kind(lambda net, x: _Viewing(net)),
    "few at once": Kind(lambda net, x: _Few(net)),
    "a tuple": Kind(_around(after=lambda z: (z, None)), {"output": 0}),
    "a dictionary": Kind(_around(after=lambda z: {"logits": z}), {"output": "logits"}),
    "an object": Kind(_around(after=lambda z: SimpleNamespace(logits=z)), {"output": "logits"}),
    "one logit": Kind(_around(after=lambda z: z[:, 1:2] - z[:, :1]), {"binary": True}),
    "a vector of logits": Kind(_around(after=lambda z: z[:, 1] - z[:, 0]), {"binary": True}),
    "logits times 1e30": Kind(_around(after=lambda z: 1e30 * z)),
    "logits times 1e-30": Kind(_around(after=lambda z: 1e-30 * z)),
    "logits plus 1e7": Kind(_around(after=lambda z: z + 1e7), flags=_COARSE, misled=True),
    "logits minus 1e7": Kind(_around(after=lambda z: z - 1e7), flags=_COARSE, misled=True),
    "logits plus 1e3": Kind(_around(after=lambda z: z + 1e3)),
    "temperature 100": Kind(_around(after=lambda z: z / 100)),
    "temperature 0.01": Kind(_around(after=lambda z: z * 100)),
    "weights of 1e6": Kind(_scaled(1e6, 1e-6)),
    "weights of 1e-6": Kind(_scaled(1e-6, 1e6)),
    "an infinite logit": Kind(_around(after=_unread)),
    "training mode": Kind(lambda net, x: net.train()),
    "a part in training mode": Kind(_part_in_training, flags=frozenset({"train-mode"})),
    "without gradients": Kind(lambda net, x: net, around=torch.no_grad),
    "inference mode": Kind(lambda net, x: net, around=torch.inference_mode),
    "mixes its batch": Kind(lambda net, x: _Centred(net), flags=frozenset({"batch-dependent"})),
    "random": Kind(_noisy("torch"), flags=_RANDOM),
    "random by numpy": Kind(_noisy("numpy"), flags=_RANDOM),
    "random by Python": Kind(_noisy("python"), flags=_RANDOM),
    "random by its own generator": Kind(_noisy("own"), flags=_RANDOM),
    "random by a buffer": Kind(_noisy("buffer"), flags=_RANDOM),
}
