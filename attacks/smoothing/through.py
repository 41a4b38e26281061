"""The smoothing mode in which steps without a gradient are passed straight through."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from attacks.smoothing.grafts import grafted, is_graft, joined
from attacks.smoothing.mode import Smoothing, in_checkpoint
from attacks.threat import per_sample

# What takes a tensor out of torch's graph.
_EXITS = {"detach", "numpy", "tolist", "__array__"}
_DATA: Any = vars(torch._C.TensorBase)["data"]


class StraightThrough(Smoothing):
    """Smoothing that also gives a gradient to what cuts it: that of the identity (BPDA, Athalye et
    al. 2018, section 4.1).

    - What `detach` and `.data` give keeps the gradient of the tensor itself.
    - A tensor of a row per sample that leaves torch's graph otherwise, by numpy or a block without
      gradients, is remembered by its shape, and the images with it. Where a tensor of that shape
      that has no gradient is used next, among none that have one, it takes that of the last that
      left.
    - So does what a custom function gives, for the samples to which its own backward pass gives
      nothing, NaN or only zeros.

    What comes back in another shape stays cut off.

    `cuts` counts what was passed through.

    temperature  as in `Smoothing`.
    points       what the model is given, (n, *shape).

    >>> x = torch.tensor([[0.3, 0.8]], requires_grad=True)
    >>> with StraightThrough(temperature=1.0, points=x):
    ...     levels = torch.from_numpy((x.detach().numpy() * 4).round() / 4)
    ...     value = 3 * levels
    >>> value.detach()
    tensor([[0.7500, 2.2500]])
    >>> torch.autograd.grad(value.sum(), x)
    (tensor([[3., 3.]]),)
    """

    def __init__(self, temperature: float, points: Tensor) -> None:
        super().__init__(temperature, len(points))
        self._points = points
        self._left: dict[torch.Size, Tensor] = {}
        self.cuts = 0
        self._detached: dict[int, tuple[Tensor, Tensor]] = {}
        self._joined: dict[Any, Tensor] = {}

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if in_checkpoint():
            return super().__torch_function__(func, types, args, kwargs)
        name = func.__name__
        live = [value for value in args if _is_number(value) and value.requires_grad]
        if name in _EXITS or func == _DATA.__get__ or not torch.is_grad_enabled():
            # What is of one sample alone could come back as that of another.
            samples = len(self._points)
            whole = (value for value in live if value.dim() > 1 and len(value) == samples)
            self._left |= {value.shape: value for value in whole}
            if live:
                self._left.setdefault(self._points.shape, self._points)
            if name in _EXITS and live:
                args = (live[0].detach(), *args[1:])
            result = super().__torch_function__(func, types, args, kwargs)
            if isinstance(result, Tensor) and torch.is_grad_enabled() and live:
                # Kept, so that no other tensor gets its id.
                self._detached[id(result)] = result, live[0]
            return result
        known = self._detached.get(id(args[0])) if args and name == "clone" else None
        if known is not None:
            # Without a gradient still, since models change copies in place.
            copy = super().__torch_function__(func, types, args, kwargs)
            self._detached[id(copy)] = copy, known[1]
            return copy
        in_place = name.startswith("__i") or name == "__setitem__"
        in_place |= name.endswith("_") and not name.endswith("__")
        if not in_place:
            args = tuple(self._returned(value, not live) for value in args)
        return super().__torch_function__(func, types, args, kwargs)

    def _returned(self, value: Any, alone: bool) -> Any:
        """A tensor with the gradient of the one that it was detached from or, where no argument has
        a gradient, of the one of its shape that left."""
        if not _is_number(value):
            return value
        if value.requires_grad:
            return self._joined_to(value)
        source = self._detached.get(id(value), (None, None))[1]
        if source is None and alone:
            source = self._left.get(value.shape)
        if source is None or source.shape != value.shape:
            return value
        self.cuts += 1
        value = value.clone() if value.is_inference() else value
        return grafted(value, source.to(value.dtype))

    def _joined_to(self, value: Tensor) -> Tensor:
        """What a custom function gave, with a second way for its gradient: to what the function saw
        last, which left torch's graph within it."""
        node = value.grad_fn
        # The nodes of functions that are written in Python have this as their class.
        if not isinstance(node, torch.autograd.function.BackwardCFunction) or is_graft(node):
            return value
        key = node, value.output_nr
        if key not in self._joined and value.shape in self._left:
            source = self._left[value.shape]
            places = [at for at, (before, _) in enumerate(node.next_functions)
                      if before is not None and before is _node(source)]  # fmt: skip
            if len(places) == 1:
                self.cuts += 1
                without = partial(_without_second, output=value.output_nr, place=places[0])
                node.register_hook(without)
                self._joined[key] = joined(value, source)
        return self._joined.get(key, value)


def _is_number(value: Any) -> bool:
    """Whether a value is a tensor that can have a gradient, and is not a weight."""
    return (
        isinstance(value, Tensor)
        and value.is_floating_point()
        and not isinstance(value, nn.Parameter)
    )


def _node(value: Tensor) -> Any:
    """The node of torch's graph that a tensor's gradient goes to."""
    return value.grad_fn or value.view_as(value).grad_fn.next_functions[0][0]  # type: ignore[union-attr]


def _without_second(
    inputs: tuple[Any, ...], outputs: tuple[Any, ...], output: int, place: int
) -> tuple[Any, ...]:
    """The gradients of a function's inputs, the one at a place less what comes to it by the second
    way: both together are the function's own where it has one, else that of its output."""
    return tuple(
        _less(gradient, outputs[output]) if at == place else gradient
        for at, gradient in enumerate(inputs)
    )


def _less(gradient: Tensor | None, second: Tensor | None) -> Tensor | None:
    if gradient is None or second is None or gradient.shape != second.shape:
        return gradient
    own = gradient.nan_to_num(0, 0, 0)
    has_own = (own.flatten(1) if own.dim() > 1 else own[:, None]).any(1)
    return torch.where(per_sample(has_own, own), own - second, 0.0)
