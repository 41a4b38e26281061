"""What compositions are made of: modules around others, networks, outputs, and layouts of samples.

Whatever is made of these is the same function as a plain network, on the same samples.
"""

import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tests.benchmark.judge.plain import Around, Plain

# Around any module from images to logits: a module of the same function.


class _Calling(nn.Module):
    """What a function makes of a module and images, with the module's state."""

    def __init__(self, net: nn.Module, how: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.net, self.how = net, how
        self.calls = 0
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("out", torch.zeros(4096, 3), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.how(self, x)


def _in_place(model: Any, x: Tensor) -> Any:
    x.mul_(2).div_(2)
    return model.net(x)


def _destroying(model: Any, x: Tensor) -> Any:
    logits = model.net(x.clone())
    x.data.fill_(-1)
    return logits


def _caching(model: Any, x: Tensor) -> Any:
    model.seen = {"images": [x], "logits": model.net(x)}
    return model.seen["logits"]


def _counting(model: Any, x: Tensor) -> Any:
    model.calls += 1
    model.count.add_(1)
    return model.net(x)


def _reusing(model: Any, x: Tensor) -> Any:
    logits = model.net(x)
    if torch.is_grad_enabled():
        return logits
    model.out = model.out.to(logits)
    model.out[: len(x)] = logits
    return model.out[: len(x)]


def _one_by_one(model: Any, x: Tensor) -> Any:
    return torch.cat([model.net(x[i : i + 1]) for i in range(len(x))])


def _turned(model: Any, x: Tensor) -> Any:
    return model.net(x.flip(0).transpose(1, -1).transpose(1, -1)).flip(0)


def _at_most_five(model: Any, x: Tensor) -> Any:
    if len(x) > 5:
        raise ValueError("too many")
    return model.net(x)


class _Straight(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return 1 * x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        return gradient * torch.ones_like(x)


class _Holding(nn.Module):
    """A function among its attributes holds its parts."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.drop = net, nn.Dropout(0.9)
        self.call = lambda x: self.net(self.drop(x))

    def forward(self, x: Tensor) -> Any:
        return self.call(x)


class _Permuted(nn.Module):
    """Buffers of integers take pixels out of their order and back."""

    def __init__(self, net: nn.Module, pixels: int) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("order", torch.randperm(pixels))
        self.register_buffer("back", self.order.argsort().int())

    def forward(self, x: Tensor) -> Any:
        return self.net(x.flatten(1)[:, self.order][:, self.back].view(x.shape))


class _Wide(nn.Module):
    """All that is inside is in float64."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net.double()

    def forward(self, x: Tensor) -> Any:
        return self.net(x.double()).float()


def _hooked(net: nn.Module) -> nn.Module:
    model = Around(net, after=lambda z: z / 2)
    model.register_forward_pre_hook(lambda module, inputs: (inputs[0] + 0.0,))
    model.register_forward_hook(lambda module, inputs, output: 2 * output)
    return model


def _calling(how: Callable[[Any, Tensor], Any]) -> Callable[[nn.Module, int], nn.Module]:
    return lambda net, pixels: _Calling(net, how)


def _around(**parts: Any) -> Callable[[nn.Module, int], nn.Module]:
    return lambda net, pixels: Around(net, **parts)


WRAPPERS: dict[str, Callable[[nn.Module, int], nn.Module]] = {
    "in place": _calling(_in_place),
    "destroys": _calling(_destroying),
    "caches": _calling(_caching),
    "counts": _calling(_counting),
    "one tensor of logits": _calling(_reusing),
    "one by one": _calling(_one_by_one),
    "turned": _calling(_turned),
    "five at once": _calling(_at_most_five),
    "checkpoint": _calling(lambda model, x: checkpoint(model.net, x, use_reentrant=False)),
    "reentrant": _calling(lambda model, x: checkpoint(model.net, x, use_reentrant=True)),
    "own function": _around(before=_Straight.apply),
    "view": _around(before=lambda x: x.view(len(x), -1).view(x.shape)),
    "normalised": _around(before=lambda x: (x - 0.5) / 0.25 * 0.25 + 0.5),
    "scaled up": _around(after=lambda z: 100 * z),
    "scaled down": _around(after=lambda z: z / 100),
    "shifted": _around(after=lambda z: z + 3),
    "log-softmax": _around(after=lambda z: z.log_softmax(1)),
    "lambda": lambda net, pixels: _Holding(net),
    "permutation": _Permuted,
    "float64 inside": lambda net, pixels: _Wide(net),
    "hooks": lambda net, pixels: _hooked(net),
    "compiled": lambda net, pixels: torch.compile(net),
    "data parallel": lambda net, pixels: nn.DataParallel(net),
    "sequential": lambda net, pixels: nn.Sequential(nn.Identity(), net),
}

# The network itself, in another form.


class _Mixed(nn.Module):
    """A body in half precision, and a head in float32."""

    def __init__(self, net: Plain) -> None:
        super().__init__()
        self.body, self.head = copy.deepcopy(net.hidden).bfloat16(), copy.deepcopy(net.last)

    def forward(self, x: Tensor) -> Any:
        hidden = self.body(x.flatten(1).to(self.body.weight.dtype)).relu()
        return self.head(hidden.to(self.head.weight.dtype))


def _normed(net: Plain) -> nn.Module:
    model = copy.deepcopy(net)
    nn.utils.parametrizations.weight_norm(model.hidden)
    return model


CORES: dict[str, Callable[[Plain, Tensor], nn.Module]] = {
    "plain": lambda net, x: net,
    "scripted": lambda net, x: torch.jit.script(net),
    "traced": lambda net, x: torch.jit.trace(net, x),
    "weight norm": lambda net, x: _normed(net),
    "mixed": lambda net, x: _Mixed(net),
}

# What the outermost module returns, and the options that say so.

ANSWERS: dict[str, tuple[Callable[[Tensor], Any], dict[str, Any]]] = {
    "logits": (lambda z: z, {}),
    "tuple": (lambda z: (None, z), {"output": 1}),
    "dictionary": (lambda z: {"features": None, "logits": z}, {"output": "logits"}),
    "object": (lambda z: SimpleNamespace(logits=z, loss=None), {"output": "logits"}),
    "one logit": (lambda z: z[:, 1:2] - z[:, :1], {"binary": True}),
    "one in a tuple": (lambda z: (z[:, 1] - z[:, 0],), {"binary": True, "output": 0}),
}

# How images lie in memory, and what holds them.


def _flipped(x: Tensor) -> Any:
    array = x.numpy()
    axes = tuple(range(array.ndim))
    return np.flip(np.flip(array, axes).copy(), axes)


def _read_only(x: Tensor) -> Any:
    array = x.numpy().copy()
    array.flags.writeable = False
    return array


LAYOUTS: dict[str, Callable[[Tensor], Any]] = {
    "contiguous": lambda x: x,
    "last axis first": lambda x: x.movedim(-1, 0).contiguous().movedim(0, -1),
    "batch last": lambda x: x.movedim(0, -1).contiguous().movedim(-1, 0),
    "channels last": lambda x: x.movedim(1, -1).contiguous().movedim(-1, 1),
    "every other": lambda x: x.repeat_interleave(2, -1)[..., ::2],
    "expanded": lambda x: x[3:4].expand(x.shape),
    "negative strides": _flipped,
    "Fortran": lambda x: np.asfortranarray(x.numpy()),
    "read only": _read_only,
    "float64": lambda x: x.double(),
    "float16": lambda x: x.half(),
    "bfloat16": lambda x: x.bfloat16(),
    "float64 array": lambda x: x.double().numpy(),
    "float16 array": lambda x: x.half().numpy(),
    "lists": lambda x: x.tolist(),
    "requires grad": lambda x: x.clone().requires_grad_(),
    "with history": lambda x: 1 * x.clone().requires_grad_(),
}
LABELS: dict[str, Callable[[Tensor], Any]] = {
    "int64": lambda y: y,
    "int32": lambda y: y.int(),
    "uint8 array": lambda y: y.numpy().astype(np.uint8),
    "uint16 array": lambda y: y.numpy().astype(np.uint16),
    "reversed array": lambda y: y.flip(0).numpy()[::-1],
    "column": lambda y: y[:, None],
    "one-hot": lambda y: nn.functional.one_hot(y, 3),
    "list": lambda y: y.tolist(),
}
