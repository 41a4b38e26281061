"""An accelerator that is simulated on the CPU: it refuses what CUDA refuses, and counts waits.

Its device is torch's "meta", on which nothing is computed otherwise. A tensor on it has a tensor on
the CPU inside, with which all is computed: values, and random draws, are those of the CPU. Inside
`accelerator()`

- what torch makes on the device, or moves to it, is on the simulated one;
- an operation on tensors of both devices raises MixedDevicesError where CUDA refuses it;
- each time that the program has to wait for the device is counted.

What it does not show: streams, kernels that CUDA lacks, its rounding and its random draws.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

DEVICE, HOST = torch.device("meta"), torch.device("cpu")

# What needs a value of the device to go on, or the size of a result.
_WAITS = {
    "_linalg_check_errors", "_linalg_eigh", "_linalg_svd", "_local_scalar_dense", "_unique",
    "_unique2", "allclose", "bincount", "equal", "masked_select", "multinomial", "nonzero",
    "unique_consecutive", "unique_dim",
}  # fmt: skip

# What takes indices, which may be on the host; CUDA copies them.
_INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}

# What moves tensors between devices.
_COPIES = {"_to_copy", "copy_"}

# What is not pointwise and yet takes numbers as tensors of the host without dimensions.
_TAKES_NUMBERS = {"fill", "fill_", "index_fill", "index_fill_", "masked_fill", "masked_fill_"}

# What makes a tensor of numbers of Python, which torch does not do on the device "meta".
_OF_NUMBERS = (torch.tensor, torch.as_tensor, torch.asarray, Tensor.new_tensor)


class MixedDevicesError(RuntimeError):
    """An operation was given tensors on two devices, which CUDA refuses."""


class OnDevice(Tensor):
    """A tensor on the simulated device; `inside` is the one on the CPU that holds its values."""

    inside: Tensor

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, inside: Tensor) -> "OnDevice":
        made: OnDevice = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, inside.shape, inside.stride(), inside.storage_offset(), dtype=inside.dtype,
            layout=inside.layout, device=DEVICE,
        )  # fmt: skip
        made.inside = inside
        return made

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"OnDevice({self.inside!r})"

    def __deepcopy__(self, memo: dict[int, Any]) -> "OnDevice":
        if id(self) not in memo:
            if not self.is_leaf:
                raise RuntimeError("only leaves of torch's graph can be copied")
            with torch.no_grad():
                copy = OnDevice(self.inside.clone())
            copy.requires_grad_(self.requires_grad)
            if isinstance(self, torch.nn.Parameter):
                copy._is_param = True
            memo[id(self)] = copy
        known: OnDevice = memo[id(self)]
        return known

    def tolist(self) -> Any:
        """The numbers, by one copy to the host."""
        return self.detach().cpu().tolist()

    @property
    def data(self) -> Tensor:
        """The same memory, outside of torch's graph."""
        return self.detach()

    @data.setter
    def data(self, other: Tensor) -> None:
        if not isinstance(other, OnDevice):
            raise MixedDevicesError("data: what is on the device cannot get memory of the host")
        vars(torch._C.TensorBase)["data"].__set__(self, other)
        self.inside = other.inside

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        raise RuntimeError(f"{func}: a simulated accelerator's tensor was used outside of it")


class Accelerator(TorchDispatchMode):
    """The simulated device, while `accelerator()` lasts.

    waits  how often the program waited for it, by the name of the operation.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.waits = Counter[str]()

    @property
    def waited(self) -> int:
        """How often the program waited for the device."""
        return self.waits.total()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        options = dict(kwargs or {})
        asked = options.get("device")
        flat = [*_leaves(args), *_leaves(options.values())]
        on_device = [value for value in flat if isinstance(value, OnDevice)]
        if any(_is_stray(value) for value in flat):
            raise RuntimeError(f"{func}: a meta tensor that the simulated accelerator did not make")
        if not on_device and asked != DEVICE:
            return func(*args, **options)

        name = func._schema.name.partition("::")[2]
        host = [value for value in flat if isinstance(value, Tensor) and value.device == HOST]
        if host and name not in _COPIES:
            _refuse_mixed(func, name, args, host)
        if _waits(name, args, options, bool(on_device)):
            self.waits[name] += 1

        # Compute it on the CPU. What comes back is the device's, but for what was to go to the
        # host; what was changed in place comes back as the tensor that it was.
        args_inside = [_inside(value) for value in args]
        options_inside = {key: _inside(value) for key, value in options.items()}
        if asked == DEVICE:
            options_inside["device"] = HOST
        result = func(*args_inside, **options_inside)
        if asked == HOST or (name == "copy_" and not isinstance(args[0], OnDevice)):
            return result
        before = {id(value.inside): value for value in on_device}
        for value in on_device:
            if value.shape != value.inside.shape or value.dtype != value.inside.dtype:
                raise NotImplementedError(f"{func}: it changes a shape in place")
        return _on_device(result, before)


class _Numbers(TorchFunctionMode):
    """Has tensors made of numbers on the host, from where they are moved, as CUDA does."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        options = dict(kwargs or {})
        if func in (Tensor.__getitem__, Tensor.__setitem__) and isinstance(args[0], OnDevice):
            args = (args[0], _moved(args[1]), *args[2:])
        if func in _OF_NUMBERS:
            of_tensor = func is Tensor.new_tensor
            device = options.get("device", args[0].device if of_tensor else None)
            data = args[1] if of_tensor else args[0] if args else options.get("data")
            if (
                device is not None
                and torch.device(device) == DEVICE
                and not isinstance(data, Tensor)
            ):
                if of_tensor:
                    options.setdefault("dtype", args[0].dtype)
                    func, args = torch.tensor, args[1:]
                return func(*args, **options | {"device": HOST}).to(DEVICE)
        return func(*args, **options)


@contextmanager
def accelerator() -> Iterator[Accelerator]:
    """A context in which the simulated device is there."""
    overwrites = torch.__future__.get_overwrite_module_params_on_conversion()
    # A parameter that moves becomes another, since that of the host cannot become an OnDevice.
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        with _Numbers(), Accelerator() as device:
            yield device
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(overwrites)


def to_host(value: Tensor) -> Tensor:
    """The tensor inside, without a wait that would be counted."""
    return value.inside if isinstance(value, OnDevice) else value


def _leaves(values: Iterable[Any]) -> Iterator[Any]:
    """The values, with those that lists hold in the place of these."""
    for value in values:
        if isinstance(value, list | tuple):
            yield from _leaves(value)
        else:
            yield value


def _inside(value: Any) -> Any:
    """A value with what is inside of tensors of the device in their place."""
    if isinstance(value, list | tuple):
        return type(value)(_inside(part) for part in value)
    return value.inside if isinstance(value, OnDevice) else value


def _is_stray(value: Any) -> bool:
    """Whether a tensor is on the device "meta" and has no values."""
    return isinstance(value, Tensor) and value.device == DEVICE and not isinstance(value, OnDevice)


def _on_device(value: Any, before: Mapping[int, OnDevice]) -> Any:
    """A result on the device: one of the tensors that there were, or a new one."""
    if isinstance(value, list | tuple):
        return type(value)(_on_device(part, before) for part in value)
    if not isinstance(value, Tensor):
        return value
    return before[id(value)] if id(value) in before else OnDevice(value)


def _moved(index: Any) -> Any:
    """An index in which lists of numbers are tensors, as torch makes them."""
    parts = index if isinstance(index, tuple) else (index,)
    moved = tuple(
        torch.tensor(part).to(DEVICE) if isinstance(part, list) else part for part in parts
    )
    return moved if isinstance(index, tuple) else moved[0]


def _refuse_mixed(func: Any, name: str, args: Sequence[Any], host: Sequence[Tensor]) -> None:
    """Raise where tensors of the host are not what CUDA takes beside those of the device."""
    if name in _INDEXING:
        indices = {id(index) for index in args[1]}
        taken = [value for value in host if id(value) in indices or value.dim() == 0]
    elif torch.Tag.pointwise in func.tags or name.startswith("_foreach") or name in _TAKES_NUMBERS:
        taken = [value for value in host if value.dim() == 0]
    else:
        taken = []
    changed = args and name.endswith("_") and any(value is args[0] for value in host)
    indexed = args and name in _INDEXING and any(value is args[0] for value in host)
    if len(taken) < len(host) or changed or indexed:
        shapes = ", ".join(str(tuple(value.shape)) for value in host)
        raise MixedDevicesError(f"{func}: tensors of the host among the device's: {shapes}")


def _waits(name: str, args: Sequence[Any], options: Mapping[str, Any], given: bool) -> bool:
    """Whether the program waits for the device at an operation; `given` says whether any of its
    arguments is there."""
    if not given and name != "_to_copy":
        return False  # it makes something new
    if name == "repeat_interleave":
        return options.get("output_size") is None
    if name in _INDEXING:
        return _waits_to_index(name, args)
    if name in _COPIES:
        blocking = not (options.get("non_blocking") or (name == "copy_" and True in args[2:]))
        if name == "copy_":
            return isinstance(args[0], OnDevice) != isinstance(args[1], OnDevice) and blocking
        arrives = isinstance(args[0], OnDevice)
        leaves = options.get("device") in (None, DEVICE)
        return arrives != leaves and blocking
    return name in _WAITS


def _waits_to_index(name: str, args: Sequence[Any]) -> bool:
    indices = [index for index in args[1] if index is not None]
    masks = [index for index in indices if index.dtype in (torch.bool, torch.uint8)]
    if "put" in name and len(masks) == len(indices) and args[2].dim() == 0:
        # Torch fills with a number. (With a value of the device it does not, which looks the same
        # here.)
        return False
    return bool(masks) or any(not isinstance(index, OnDevice) for index in indices)
