"""Calls that were made before: an operator's allocations, products and launches without its Python.

What an operator does follows from the shapes, strides, dtypes and alignment of its tensors and from its other
arguments. It is recorded under those, and played for later calls, whose tensors take the places of the
recorded ones.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import nullcontext
from operator import itemgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor as GluonDescriptor
from triton.runtime import driver
from triton.runtime.jit import JITCallable
from triton.tools.tensor_descriptor import TensorDescriptor

from . import launch, repeats
from .plan import choices, config

_MOST = 256
"""Calls that are kept per operator. A number that changes with every step makes a new one each time."""

_NO_CONTEXT = nullcontext()
_aten: Any = torch.ops.aten
_ALLOCATIONS = {_aten.empty.memory_format, _aten.new_empty.default}
_CASTS = {_aten.to.dtype, _aten._to_copy.default}
_OPERATIONS = {_aten.mm.default, _aten.mm.out, _aten.mul.Tensor, *_CASTS}
_VIEWS = {_aten.t.default, _aten.transpose.int, _aten.unsqueeze.default, _aten.detach.default}
"""Operations whose result starts where their argument does."""

_CONSTANTS = (int, float, str, JITCallable, type(None))
"""Types of a kernel's arguments that are the same whatever the tensors."""

Values = list[Any]
"""A call's tensors, then the results of its steps, then the constants of all steps."""
Step = Callable[[Values, int], Any]
"""A function of these values and of a stream."""
Getter = Callable[[Any], tuple[Any, ...]]


def _allocate(like: int, shape: torch.Size, dtype: torch.dtype | None, values: Values, stream: int) -> Tensor:
    if dtype is None and shape:  # read in half the time: no dtype, and sizes that are no tuple
        return values[like].new_empty(*shape)
    return values[like].new_empty(shape, dtype=dtype)


def _operate(func: Any, args: Any, options: dict[str, int], values: Values, stream: int) -> Tensor:
    return func(*args(values), **{name: values[place] for name, place in options.items()})


def _join(args: Any, values: Values, stream: int) -> tuple[Any, ...]:
    return args(values)


def _describe(kind: type, fields: dict[str, Any], base: int, values: Values, stream: int) -> Any:
    """A descriptor of another tensor of the same shape, strides and alignment, which need no check."""
    made: Any = object.__new__(kind)
    vars(made).update(fields)
    made.base = values[base]
    return made


def _launch(compiled: repeats.Compiled, programs: int, args: Any, values: Values, stream: int) -> None:
    compiled.launch(programs, stream, args(values))


def _getter(places: list[int]) -> Getter:
    if len(places) == 1:
        return lambda values: (values[places[0]],)
    return itemgetter(*places) if places else lambda values: ()


class _Call(NamedTuple):
    """A recorded call."""

    steps: list[Step]
    rest: list[Any]  # of the values, after a call's tensors: room for results, and the constants
    results: Callable[[Values], Any]
    kernels: list[repeats.Compiled]
    operates: bool  # whether autocast could change a step

    def holds(self, device: int) -> bool:
        """True if Triton would choose the recorded kernels."""
        return not repeats.watched() and all([kernel.holds(device) for kernel in self.kernels])

    def play(self, tensors: tuple[Tensor, ...], device: int) -> Any:
        active: Any = driver.active
        stream = active.get_current_stream(device)
        values: Values = [*tensors, *self.rest]
        kind = tensors[0].device.type
        outside = self.operates and torch.is_autocast_enabled(kind)
        with torch.autocast(kind, enabled=False) if outside else _NO_CONTEXT:
            for place, step in enumerate(self.steps, len(tensors)):
                values[place] = step(values, stream)
        return self.results(values)


class _Recorder(TorchDispatchMode):
    """The steps of a call; ``playable`` if it does nothing else."""

    def __init__(self, tensors: tuple[Tensor, ...]) -> None:
        super().__init__()
        self.playable, self._given, self._operates = True, len(tensors), False
        self._steps: list[Step] = []
        self._constants: list[Any] = []  # their places are -1, -2, ...
        self._kernels: list[repeats.Compiled] = []
        self._alive: list[Tensor] = []  # all tensors, so that no later one gets the address of another
        self._places: dict[Any, int] = {}  # of tensors by form, and by address, which is all that kernels see
        self._dtypes: dict[torch.dtype, int] = {}  # the place of the first tensor of each
        self._views: dict[Any, tuple[Any, ...]] = {}  # how to make views, which only operations need
        self._new: list[tuple[Any, int]] = []  # forms and places of tensors with memory of their own
        for place, tensor in enumerate(tensors):
            self._know(tensor, place)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func in _VIEWS:
            self._alive.append(result)
            self._views.setdefault(_form(result), (func, args, kwargs))
        elif func in _ALLOCATIONS:
            self.playable &= result.is_contiguous() and result.device == self._alive[0].device
            like = self._dtypes.get(result.dtype)
            dtype = result.dtype if like is None else None
            self._made(functools.partial(_allocate, like or 0, result.shape, dtype), result)
        elif func in _CASTS and _form(result) in self._places:
            pass  # of that dtype already
        elif func in _OPERATIONS:
            self._operates = True
            self._made(self._operation(func, args, kwargs), result, new="out" not in kwargs)
        else:
            self.playable = False
        return result

    def launched(self, compiled: repeats.Compiled | None, programs: int, args: tuple[Any, ...]) -> None:
        if compiled is None:
            self.playable = False
            return
        self._kernels.append(compiled)
        getter = _getter([self._place(value) for value in (*args, *compiled.constants)])
        self._step(functools.partial(_launch, compiled, programs, getter))

    def call(self, results: Any) -> _Call | None:
        """The call that gave ``results``, or ``None`` where it cannot be played."""
        places: list[int] = []
        for form in map(_form, (results,) if isinstance(results, Tensor) else results):
            free = [place for known, place in self._new if known == form and place not in places]
            places += free[:1]
            self.playable &= bool(free)  # each result is a tensor of its own
        if not self.playable or not (self._kernels or self._operates):
            return None
        rest = [None] * len(self._steps) + self._constants[::-1]
        get = itemgetter(*places) if isinstance(results, Tensor) else _getter(places)
        return _Call(self._steps, rest, get, self._kernels, self._operates)

    def _know(self, tensor: Tensor, place: int) -> None:
        self._alive.append(tensor)
        self._places.setdefault(_form(tensor), place)
        self._places.setdefault(tensor.data_ptr(), place)
        if tensor.device == self._alive[0].device:
            self._dtypes.setdefault(tensor.dtype, place)

    def _step(self, step: Step) -> int:
        self._steps.append(step)
        return self._given + len(self._steps) - 1

    def _made(self, step: Step, result: Tensor, new: bool = True) -> None:
        place = self._step(step)
        self._know(result, place)
        if new:
            self._new.append((_form(result), place))

    def _constant(self, value: Any) -> int:
        self._constants.append(value)
        return -len(self._constants)

    def _operation(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Step:
        def place(value: Any) -> int:
            return self._operand(value) if isinstance(value, Tensor) else self._constant(value)

        options = {name: place(value) for name, value in kwargs.items()}
        return functools.partial(_operate, func, _getter([place(value) for value in args]), options)

    def _operand(self, tensor: Tensor) -> int:
        """The place of an operation's operand."""
        form = _form(tensor)
        if form in self._places:
            return self._places[form]
        if form not in self._views:
            self.playable = False
            return 0
        self._places[form] = self._step(self._operation(*self._views[form]))
        return self._places[form]

    def _place(self, value: Any) -> int:
        """The place of a kernel's argument."""
        if isinstance(value, Tensor):
            address = value.data_ptr()  # 0 without entries
            self.playable &= address != 0 and address in self._places
            return self._places.get(address, 0)
        if type(value) in (TensorDescriptor, GluonDescriptor):
            fields = {**vars(value), "base": None}
            return self._step(functools.partial(_describe, type(value), fields, self._place(value.base)))
        if not isinstance(value, tuple):
            self.playable &= isinstance(value, _CONSTANTS)  # what else there may be could hold a tensor
            return self._constant(value)
        parts = [self._place(part) for part in value]
        if all(place < 0 for place in parts):
            return self._constant(value)
        return self._step(functools.partial(_join, _getter(parts)))


def _form(tensor: Tensor) -> tuple[Any, ...]:
    """All that operations see of a tensor, but for its entries."""
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype


@functools.lru_cache
def _split(kinds: tuple[type, ...]) -> tuple[Getter, Getter]:
    """Getters of the tensors among arguments of these types, and of the types and all else."""
    tensors = [i for i, kind in enumerate(kinds) if issubclass(kind, Tensor)]
    lists = [i for i, kind in enumerate(kinds) if kind is list]
    get = _getter([i for i in range(len(kinds)) if i not in (*tensors, *lists)])
    if lists:
        return _getter(tensors), lambda args: (kinds, *get(args), *[tuple(args[i]) for i in lists])
    return _getter(tensors), lambda args: (kinds, *get(args))


def replayed(function: Callable[..., Any]) -> Callable[..., Any]:
    """Make an operator's function play the third and later ones of equal calls.

    Args:
        function: takes a tensor, then tensors, numbers, names and lists of numbers; returns new tensors, one
            or a tuple. What it does depends on no entry of a tensor, and not on autocast. Where that is more
            than allocations, products, transposes and launches, it is called as it is.
    """
    calls: dict[Any, _Call | bool] = {}  # True after one call, False where it cannot be played
    tables: dict[str, Any] = {}  # of measured choices by device, which the calls rest on

    @functools.wraps(function)
    def call(*args: Any, **options: Any) -> Any:
        own = args[0].device
        target = launch.target_of(own)
        if options or target.backend != "cuda" or not launch.is_ready(own):
            return function(*args, **options)
        table = choices.table(target.device)
        if tables.get(target.device) is not table:
            calls.clear()
            tables[target.device] = table
        tensors_of, rest_of = _split(tuple(map(type, args)))
        tensors = tensors_of(args)
        addresses = [tensor.data_ptr() for tensor in tensors]
        key = (
            target,
            own,
            config._override,
            config.precision(args[0].dtype, target),
            *rest_of(args),
            *[(tensor.shape, tensor.stride(), tensor.dtype) for tensor in tensors],
            *[address % 16 for address in addresses],
            *map(addresses.index, addresses),
        )
        return _run(function, args, tensors, calls, key)

    return call


def _run(
    function: Callable[..., Any],
    args: tuple[Any, ...],
    tensors: tuple[Tensor, ...],
    calls: dict[Any, _Call | bool],
    key: tuple[Any, ...],
) -> Any:
    """A call that is played, recorded or neither."""
    kept = calls.get(key)
    if kept is True:  # the second one: recording takes longer than a call, which may never come again
        with _Recorder(tensors) as recorder, repeats.recorded(recorder):
            results = function(*args)
        calls[key] = recorder.call(results) or False
        return results
    if kept:
        active: Any = driver.active
        device = active.get_current_device()
        if kept.holds(device):
            return kept.play(tensors, device)
    elif kept is None:
        if len(calls) >= _MOST:
            calls.clear()
        calls[key] = True
    return function(*args)
