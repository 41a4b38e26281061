"""The torch function mode under which non-smooth operations have smooth derivatives."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from attacks.smoothing.elementwise import ELEMENTWISE
from attacks.smoothing.extremes import EXTREMES
from attacks.smoothing.scale import Scale
from attacks.smoothing.steps import CARRIED, STEPS, has_companion, with_companions

Rule = Callable[..., Any]
_RULES: Mapping[str, Rule] = {**ELEMENTWISE, **EXTREMES, **STEPS}

# Where functions take `inplace` by place.
_IN_PLACE_AT = {
    **dict.fromkeys(("relu", "relu6", "hardsigmoid", "hardswish", "selu", "silu", "mish"), 1),
    **dict.fromkeys(("leaky_relu", "elu", "celu"), 2),
    **dict.fromkeys(("hardtanh", "threshold"), 3),
    "rrelu": 4,
}

# What makes numbers of Python out of tensors: these have no gradient, and decide nothing but which
# way the code of a model takes.
_TO_PYTHON = {f"__{kind}__" for kind in ("bool", "int", "long", "float", "complex", "index")}


class Smoothing(TorchFunctionMode):
    """Within it, models keep their values, and their gradients are those of smoothed operations.

    temperature  how far an operation looks for other pieces of itself, in units of how far its
                 inputs spread, which is measured for each sample: 1 smooths a ReLU over about the
                 mean absolute value of what it is given. At 0 nothing would change.
    samples      how many images the model is given together.

    What is smoothed: rectifiers, clamps, extremes and pooling, saturating activations, rounding,
    comparisons and argmax, as functions, methods, in place, and as modules use them. Values are the
    network's own to the bit, so that a search judges the network itself at each step. What torch
    runs elsewhere (scripted modules, custom autograd functions, what checkpoints recompute) keeps
    its gradients; `smoothed` counts the operations that were smoothed, by name.

    The idea of climbing a network whose nonlinearities are softened, and to end on the network
    itself, is that of the seeded attack on fractal classifiers (section 4.1).

    >>> x = torch.tensor([[-1.0, 3.0]], requires_grad=True)
    >>> with Smoothing(temperature=1.0, samples=1):
    ...     value = torch.relu(x)
    >>> value.detach()
    tensor([[0., 3.]])
    >>> torch.autograd.grad(value.sum(), x)
    (tensor([[0.3775, 0.8176]]),)
    """

    def __init__(self, temperature: float, samples: int) -> None:
        super().__init__()
        self._scale = Scale(temperature, samples)
        self._carrying = False
        self.smoothed = Counter[str]()

    @property
    def softened(self) -> int:
        """How many operations were smoothed."""
        return self.smoothed.total()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        options = dict(kwargs or {})
        name = func.__name__.partition(".")[0]
        if not torch.is_grad_enabled() or "out" in options or name in _TO_PYTHON:
            return func(*args, **options)
        key = name.strip("_")
        rule = _RULES.get(key)
        if rule is None:
            if self._carrying and key in CARRIED:
                return with_companions(func, args, options)
            return func(*args, **options)
        live = any(_is_live(value) for value in (*args, *options.values()))
        if not live or in_checkpoint():
            return func(*args, **options)
        is_method = name.endswith("_") and not name.endswith("__")
        given, in_place = args, is_method or options.pop("inplace", False)
        if len(args) > _IN_PLACE_AT.get(key, len(args)):
            args, in_place = args[:-1], args[-1]
        out_of_place = getattr(Tensor, key) if is_method else func
        result = rule(self._scale, out_of_place, *args, **options)
        if result is NotImplemented:
            return func(*given, **dict(kwargs or {}))
        self.smoothed[key] += 1
        self._carrying = self._carrying or has_companion(result)
        return args[0].copy_(result) if in_place else result


def in_checkpoint() -> bool:
    """Whether the backward pass will compute this anew: outside of this mode, where it must be the
    same."""
    return torch._C._autograd._top_saved_tensors_default_hooks(True) is not None


def _is_live(value: Any) -> bool:
    """Whether a gradient goes through an argument of a function."""
    if isinstance(value, list | tuple):
        return any(_is_live(item) for item in value)
    return isinstance(value, Tensor) and (value.requires_grad or has_companion(value))
