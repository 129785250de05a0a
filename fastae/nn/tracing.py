"""Graphs of a module's own forward, recorded by :mod:`torch.fx` with every child as one call.

A graph holds only where the code that made it would do the same again. What a trace cannot see is refused:
tensors and random numbers made on the way, attributes that are set, questions about types. Plain attributes
that were read are returned, to be compared before the graph is used.
"""

from __future__ import annotations

import functools
import inspect
import random
import types
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode

INTERNAL = frozenset(vars(nn.Module()))
_FUNCTIONS = (types.FunctionType, types.BuiltinFunctionType, functools.partial)
_CONSTANTS = (bool, int, float, str, type(None), np.generic, torch.dtype, *_FUNCTIONS)
# what a proxy answers otherwise than a tensor, or otherwise at another time
_QUESTIONS = frozenset({"isinstance", "type", "hasattr", "is_grad_enabled", "is_compiling"})

# forwards of as many inputs as are required: options keep their defaults
_CALLS: dict[int, Callable[[type[nn.Module]], Callable[..., Any]]] = {
    1: lambda base: lambda self, x: base.forward(self, x),
    2: lambda base: lambda self, x, y: base.forward(self, x, y),
    3: lambda base: lambda self, x, y, z: base.forward(self, x, y, z),
}


class Untraceable(Exception):
    """A forward that cannot be recorded, with the reason."""


class Trace(NamedTuple):
    """The graphs of a forward in training (``True``) and in evaluation, and what they were recorded from."""

    graphs: dict[bool, fx.Graph]
    inputs: tuple[str, ...]  # names of the required arguments
    attributes: dict[str, Any]  # plain attributes read


def trace(module: nn.Module, base: type[nn.Module]) -> Trace:
    """The calls that ``base.forward`` makes on ``module``, which is left as it is.

    Raises:
        Untraceable: the forward does something else than calling modules and functions on its tensors.
    """
    inputs = _required_inputs(base)
    _check_code(base)
    read: dict[str, Any] = {}
    state = random.getstate(), np.random.get_state()
    graphs: dict[tuple[bool, bool], fx.Graph] = {}
    try:
        for own in (True, False):
            for children in (True, False):
                root = _recording_copy(module, base, len(inputs), read)
                for part in root.modules():
                    vars(part)["training"] = own if part is root else children
                with _NoNewTensors():
                    graphs[own, children] = _Tracer().trace(root)
    except Exception as error:  # whatever the code of others raises on a proxy
        raise Untraceable(_first_line(error)) from None
    finally:
        drawn = random.getstate() != state[0] or str(np.random.get_state()) != str(state[1])
        random.setstate(state[0])
        np.random.set_state(state[1])
    if drawn:
        raise Untraceable("it draws random numbers of Python or NumPy")
    if any(str(graphs[own, True]) != str(graphs[own, False]) for own in (True, False)):
        raise Untraceable("it asks for the mode of a child")
    for name, value in read.items():
        parts = value if isinstance(value, tuple) else (value,)
        if not all(isinstance(part, _CONSTANTS) for part in parts):
            raise Untraceable(f"it reads self.{name}, which may change")
    return Trace({own: graphs[own, own] for own in (True, False)}, inputs, read)


def _required_inputs(base: type[nn.Module]) -> tuple[str, ...]:
    parameters = list(inspect.signature(base.forward).parameters.values())[1:]
    required = [
        p for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    if len(required) not in _CALLS or any(p.kind is p.KEYWORD_ONLY for p in required):
        raise Untraceable(f"it takes {len(required)} required arguments")
    return tuple(p.name for p in required)


def _check_code(base: type[nn.Module]) -> None:
    """Refuses code that would see a proxy for what it is."""
    for cls in base.__mro__[: base.__mro__.index(nn.Module)]:
        for name, function in vars(cls).items():
            asked = _QUESTIONS.intersection(getattr(getattr(function, "__code__", None), "co_names", ()))
            if asked and not name.startswith("__"):
                raise Untraceable(f"its {name} depends on {min(asked)}()")


def _recording_copy(module: nn.Module, base: type[nn.Module], inputs: int, read: dict[str, Any]) -> nn.Module:
    own = set(vars(module)) - INTERNAL

    def get(self: nn.Module, name: str) -> Any:
        value = object.__getattribute__(self, name)
        if name in own:
            read[name] = value
        return value

    def refuse(self: nn.Module, name: str, *value: Any) -> None:
        raise Untraceable(f"it sets self.{name}")

    methods = {"forward": _CALLS[inputs](base), "__getattribute__": get}
    copy = copy_tree(module)
    copy.__class__ = type(base.__name__, (base,), {**methods, "__setattr__": refuse, "__delattr__": refuse})
    return copy


def copy_tree(
    module: nn.Module,
    shared: Callable[[nn.Module], bool] = lambda _: False,
    done: dict[int, nn.Module] | None = None,
) -> nn.Module:
    """A copy of a module and its descendants, but for the ``shared`` ones; tensors are shared."""
    done = {} if done is None else done
    if id(module) in done or shared(module):
        return done.get(id(module), module)
    copy = done[id(module)] = object.__new__(type(module))
    # dictionaries of their own: what is registered or replaced in one must not show in the other
    vars(copy).update({k: v.copy() if isinstance(v, dict) else v for k, v in vars(module).items()})
    for name, child in copy._modules.items():
        if child is not None:
            copy._modules[name] = copy_tree(child, shared, done)
    return copy


class _Tracer(fx.Tracer):
    def __init__(self) -> None:
        super().__init__()
        self.modes = _modes()

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True

    def create_arg(self, a: Any) -> Any:
        return super().create_arg(a.item() if isinstance(a, np.generic) else a)

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        if _modes() != self.modes:
            raise Untraceable("it changes the mode of gradients or autocast")
        return super().create_node(*args, **kwargs)


def _modes() -> tuple[bool, ...]:
    autocast = (torch.is_autocast_enabled(device) for device in ("cpu", "cuda"))
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), *autocast


class _NoNewTensors(TorchFunctionMode):
    """Refuses functions of the forward that give a tensor instead of a proxy: a graph would freeze it."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            raise Untraceable(f"it makes a tensor ({getattr(func, '__name__', func)})")
        return result


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return text[0] if text else type(error).__name__
