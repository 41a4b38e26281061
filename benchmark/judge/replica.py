"""Copies of models, whatever torch feature they use: the models themselves are never called."""

import copy
import random
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from functools import partial
from types import FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from attacks.messages import described
from benchmark.errors import UserError
from benchmark.judge.rebinding import content_of, held_by, rebind

_PARALLEL = (nn.DataParallel, nn.parallel.DistributedDataParallel)

# What a class has of its own, and a copy of it gets anew.
_OF_CLASS = ("__dict__", "__weakref__")

# How deep lists and dictionaries among the attributes of modules are searched for tensors.
_DEPTH = 3


def unwrapped(model: object) -> nn.Module:
    """The module that a model is, without what spreads it over devices.

    An exported program (`torch.export`) becomes a module. Raises UserError for what is no model.
    """
    if isinstance(model, torch.export.ExportedProgram):
        return model.module()
    while isinstance(model, _PARALLEL):
        model = model.module
    if not isinstance(model, nn.Module):
        raise UserError(f"the model must be a torch.nn.Module, not {type(model).__name__}")
    return model


def freeze(model: nn.Module, device: torch.device, dtype: torch.dtype | None) -> nn.Module:
    """Copy a model to a device, in eval mode, with parameters that take no gradients.

    dtype  of its real parameters and buffers; as they are if None. Complex ones get the same
           precision, and integers stay.

    Raises UserError where the model cannot be copied.
    """
    model = unwrapped(model)
    try:
        with torch.no_grad():  # else the parameters of a copied ScriptModule would not be leaves
            # Memory that was shared with the user's model, and not freed yet, would move when the
            # user writes to it.
            frozen = copied(model, shares=False)
            for part in (frozen, *held_by(frozen)):
                part.to(device)
                if dtype is not None:
                    part._apply(lambda tensor: _cast(tensor, dtype))
                if is_training(part):
                    part.eval()
                for parameter in part.parameters():  # a ScriptModule refuses requires_grad_
                    if parameter.is_floating_point() or parameter.is_complex():
                        parameter.requires_grad_(False)
    except UserError:
        raise
    except Exception as error:
        what = device if dtype is None else f"{device} as {dtype}"
        raise UserError(f"the model cannot be copied to {what}: {described(error)}") from error
    return frozen


def is_training(model: nn.Module) -> bool:
    """Whether any part of a model is in training mode. Frozen and exported ones have no modes."""
    if isinstance(model, torch.export.ExportedProgram) or _is_exported(model):
        return False
    return any(getattr(module, "training", False) for module in model.modules())


def has_training_parts(model: nn.Module) -> bool:
    """Whether parts of a model are in training mode that is in eval mode itself: `eval` puts all of
    a model into it, so that they were put back on purpose, as dropout at test time is."""
    return is_training(model) and not getattr(model, "training", False)


def _is_exported(model: nn.Module) -> bool:
    """Whether a model is the module of an exported program, which has modes in name alone."""
    return isinstance(model, torch.fx.GraphModule) and any(
        node.op == "call_function" and "aten" in str(node.target) for node in model.graph.nodes
    )


def twin_of(model: nn.Module) -> nn.Module:
    """A frozen model's copy in float64."""
    twin = copied(model)
    for part in (twin, *held_by(twin)):
        part._apply(lambda tensor: _cast(tensor, torch.float64))
    return twin


def precision_of(model: nn.Module) -> str:
    """The precision of a model, as tables name it: that of its real parameters and buffers, several
    joined by "+"; float32 if it has none."""
    tensors = [*model.parameters(), *model.buffers()]
    dtypes = {str(tensor.dtype)[6:] for tensor in tensors if tensor.is_floating_point()}
    return "+".join(sorted(dtypes)) or "float32"


def reseed(model: nn.Module, seed: int) -> None:
    """Seed the random generators that a model holds, also in lists, dictionaries and objects, and
    in what its functions close over."""
    seen: set[int] = set()
    left: list[Any] = [vars(module) for module in model.modules()]
    while left:
        value = left.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, torch.Generator):
            value.manual_seed(seed)
        elif isinstance(value, np.random.Generator):
            # In place: more than one object may hold it.
            value.bit_generator.state = type(value.bit_generator)(seed).state
        elif isinstance(value, np.random.RandomState | random.Random):
            value.seed(seed % 2**32)
        else:
            left += _inside(value)


def _inside(value: Any) -> Iterable[Any]:
    """What an object holds in which a random generator may be."""
    if isinstance(value, dict):
        return value.values()
    if isinstance(value, list | tuple | set | deque):
        return value
    if isinstance(value, partial):
        return (value.func, value.args, value.keywords)
    if isinstance(value, FunctionType):
        return (vars(value), value.__defaults__, *map(content_of, value.__closure__ or ()))
    if isinstance(value, MethodType):
        return (value.__func__, value.__self__)
    if isinstance(value, Tensor | type | ModuleType):
        return ()
    return (getattr(value, "__dict__", {}),)


def state_of(model: nn.Module) -> dict[str, Any]:
    """The buffers of a model, the sums of its parameters, and the tensors and numbers among its
    attributes, also in lists and dictionaries, to be compared."""
    state: dict[str, Any] = {name: _dense(value) for name, value in model.named_buffers()}
    for name, parameter in model.named_parameters():
        state[name] = _dense(parameter).sum()
    for prefix, module in model.named_modules():
        for name, value in vars(module).items():
            if name not in ("_parameters", "_buffers", "_modules"):
                state.update(_values(f"{prefix}.{name}", value, _DEPTH))
    return state


def _dense(tensor: Tensor) -> Tensor:
    """A copy of a tensor that can be compared, whatever its layout."""
    tensor = tensor.detach()
    if tensor.is_quantized:
        return tensor.dequantize()
    return tensor.to_dense() if tensor.layout != torch.strided else tensor.clone()


def _values(name: str, value: Any, depth: int) -> Iterator[tuple[str, Any]]:
    """What can be compared of an attribute, by name."""
    if isinstance(value, Tensor):
        yield name, _dense(value)
    elif isinstance(value, bool | int | float | str):
        yield name, value
    elif depth and isinstance(value, dict):
        for key, part in value.items():
            yield from _values(f"{name}[{key!r}]", part, depth - 1)
    elif depth and isinstance(value, list):
        for place, part in enumerate(value):
            yield from _values(f"{name}[{place}]", part, depth - 1)


def same_state(first: dict[str, Any], second: dict[str, Any]) -> bool:
    """Whether two states are equal."""
    return first.keys() == second.keys() and all(
        _same(value, second[name]) for name, value in first.items()
    )


def _same(first: Any, second: Any) -> bool:
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        if first.shape != second.shape:
            return False
        return bool(((first == second) | (first.isnan() & second.isnan())).all())
    return type(first) is type(second) and bool(first == second)


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    if tensor.is_complex():
        return tensor.to(dtype.to_complex())
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def copied(model: nn.Module, shares: bool = True) -> nn.Module:
    """A deep copy that cannot change the model. Raises UserError where it would share some of it.

    shares  whether parameters and buffers are in the same memory until one of the two is written
            to.
    """
    memo: dict[int, Any] = {}
    if shares:
        _share(memo, (*model.parameters(), *model.buffers()))
    # Tensors with a history, such as cached activations, cannot be copied otherwise.
    for tensor in _cached(model):
        memo[id(tensor)] = tensor.detach().clone()
    _join(memo, model)
    duplicate = copy.deepcopy(model, memo)
    for parameter in model.parameters():  # whose attributes torch does not copy
        if vars(parameter) and id(parameter) in memo:
            vars(memo[id(parameter)]).update(copy.deepcopy(vars(parameter), memo))
    for module in duplicate.modules():
        if is_parametrized(module):
            # Its properties are those of a class of its own, which the copy must not change.
            kind = type(module)
            attributes = {key: value for key, value in vars(kind).items() if key not in _OF_CLASS}
            module.__class__ = type(kind.__name__, kind.__bases__, attributes)
    own = {id(part) for part in (*model.modules(), *model.parameters(), *model.buffers())}
    for part in (*duplicate.modules(), *duplicate.parameters(), *duplicate.buffers()):
        if id(part) in own:
            raise UserError(
                f"a copy of the model shares a {type(part).__name__} with it, which evaluating it "
                "could change: let its __deepcopy__ copy all of it"
            )
    rebind(duplicate, memo)
    return duplicate


def _share(memo: dict[int, Any], tensors: Iterable[Tensor]) -> None:
    """Let a deep copy with the memo `memo` share the memory of some tensors until it is written to.

    A model of a hundred million parameters is copied for every block that an attack works on. Torch
    lets such copies share memory: whoever writes first, be it through `.data`, an alias or a
    pointer, is given memory of its own before. Tensors that torch cannot share so, such as those in
    a memory map or of a subclass, stay for the deep copy to copy.
    """
    # By `copy.deepcopy`, torch copies parameters one by one, and other tensors by their storages,
    # which several may have in common.
    storages: dict[int, Any] = memo.setdefault("torch", {})  # type: ignore[call-overload]
    for tensor in tensors:
        kind = type(tensor)
        if kind not in (Tensor, nn.Parameter) or tensor.is_quantized:
            continue
        # Torch's own kernels know of it on these alone.
        if id(tensor) in memo or tensor.device.type not in ("cpu", "cuda"):
            continue
        # Memory that `torch.load` and its like provide has no allocator: a write would crash.
        if tensor.layout != torch.strided or not tensor.untyped_storage().resizable():
            continue
        try:
            whole = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
            if kind is nn.Parameter and not whole:
                continue  # whoever writes to a part would copy all of the memory that it is in
            clone = torch._lazy_clone(tensor.detach())
            if kind is nn.Parameter:
                memo[id(tensor)] = nn.Parameter(clone, tensor.requires_grad)
            else:
                storages.setdefault(tensor.untyped_storage()._cdata, clone.untyped_storage())
        except (RuntimeError, NotImplementedError):
            continue


def _join(memo: dict[int, Any], model: nn.Module) -> None:
    """Let the copies of parameters that share memory with other parameters or buffers share it with
    the copies of these, which torch copies one by one."""
    tensors = [
        tensor
        for tensor in (*model.parameters(), *model.buffers())
        if type(tensor) in (Tensor, nn.Parameter) and tensor.layout == torch.strided
    ]
    counts = Counter(tensor.untyped_storage()._cdata for tensor in tensors)
    for tensor in tensors:
        if isinstance(tensor, nn.Parameter) and counts[tensor.untyped_storage()._cdata] > 1:
            joined = copy.deepcopy(tensor.detach(), memo)
            memo[id(tensor)] = nn.Parameter(joined, tensor.requires_grad)


def _cached(model: nn.Module) -> Iterator[Tensor]:
    """The tensors with a history among the attributes of a model's modules."""
    for module in model.modules():
        for value in vars(module).values():
            yield from _with_history(value, _DEPTH)


def _with_history(value: object, depth: int) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        if not value.is_leaf:
            yield value
    elif depth and isinstance(value, dict | list | tuple | set):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _with_history(inner, depth - 1)
    elif depth and hasattr(value, "__dict__") and not isinstance(value, nn.Module | type):
        yield from _with_history(vars(value), depth - 1)
