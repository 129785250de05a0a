"""Calls that were made before: an operator's allocations and launches, made again without its Python.

What an operator allocates and launches follows from the shapes, strides, dtypes and alignment of its tensors
and from its other arguments. It is recorded under those, and played for later calls, whose tensors take the
places of the recorded ones.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from operator import itemgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from triton.runtime import driver
from triton.tools.tensor_descriptor import TensorDescriptor

from . import launch, repeats
from .plan import choices, config

Pool = list[Any]
"""A call's tensors, then what it allocates, then what its launches are given beside them."""

_MOST = 1024
"""Calls that are kept per operator. A number that changes with every step makes new ones."""

_aten: Any = torch.ops.aten
_ALLOCATIONS = {_aten.empty.memory_format, _aten.new_empty.default}
_VIEWS = {_aten.t.default, _aten.transpose.int, _aten.unsqueeze.default, _aten.detach.default}
"""Operations whose result starts where their argument does."""


class _Launch(NamedTuple):
    compiled: repeats.Compiled
    programs: int
    args: Callable[[Pool], tuple[Any, ...]]


class _Call(NamedTuple):
    """A recorded call."""

    allocations: list[tuple[int, torch.Size, torch.dtype]]  # the first number is that of a tensor like it
    constants: list[Any]
    parts: list[Callable[[Pool], Any]]  # tuples and descriptors, made of what is before them in the pool
    launches: list[_Launch]
    results: Callable[[Pool], Any]

    def holds(self) -> bool:
        """True if Triton would choose the recorded kernels."""
        if repeats.watched():
            return False
        active: Any = driver.active
        device = active.get_current_device()
        return all(made.compiled.holds(device) for made in self.launches)

    def play(self, tensors: list[Tensor]) -> Any:
        pool: Pool = tensors
        for like, shape, dtype in self.allocations:
            tensor = pool[like]
            if tensor.dtype is dtype:  # several times as fast without
                pool.append(tensor.new_empty(shape))
            else:
                pool.append(tensor.new_empty(shape, dtype=dtype))
        pool += self.constants
        for part in self.parts:
            pool.append(part(pool))
        active: Any = driver.active
        stream = active.get_current_stream(active.get_current_device())
        for compiled, programs, args in self.launches:
            compiled.launch(programs, stream, args(pool))
        return self.results(pool)


class _Recorder(TorchDispatchMode):
    """A call's allocations and launches; ``playable`` if that is all it does."""

    def __init__(self, tensors: list[Tensor]) -> None:
        super().__init__()
        self.playable, self.given = True, len(tensors)
        self.tensors = list(tensors)
        self.places: dict[int, int] = {}  # by address; tensors of one address can stand for each other
        for place, tensor in enumerate(tensors):
            self._place(tensor, place)
        self.launches: list[tuple[repeats.Compiled, int, tuple[Any, ...]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in _ALLOCATIONS:
            self.playable &= result.is_contiguous() and result.device == self.tensors[0].device
            self._place(result, len(self.tensors))
            self.tensors.append(result)
        else:
            self.playable &= func in _VIEWS
        return result

    def _place(self, tensor: Tensor, place: int) -> None:
        if address := tensor.data_ptr():  # there is none without entries
            self.places.setdefault(address, place)

    def launched(self, compiled: repeats.Compiled | None, programs: int, args: tuple[Any, ...]) -> None:
        if compiled is None:
            self.playable = False
        else:
            self.launches.append((compiled, programs, args + compiled.constants))

    def call(self, results: Any) -> _Call | None:
        """The call that gave ``results``, or ``None`` where it cannot be played."""
        if not self.playable or not self.launches:
            return None
        left = [_form(tensor) if i >= self.given else None for i, tensor in enumerate(self.tensors)]
        places: list[int] = []
        for form in map(_form, (results,) if isinstance(results, Tensor) else results):
            if form not in left:
                return None
            places.append(left.index(form))
            left[places[-1]] = None  # each result is a tensor of its own
        allocations, dtypes = [], [tensor.dtype for tensor in self.tensors]
        for i in range(self.given, len(dtypes)):
            like = min(dtypes.index(dtypes[i]), i - 1)
            allocations.append((like, self.tensors[i].shape, dtypes[i]))
        arguments = _Arguments(self)
        try:
            indices = [arguments.indices(args) for _, _, args in self.launches]
        except KeyError:  # a tensor from elsewhere
            return None
        getters = map(arguments.getter, indices)
        launches = [_Launch(*made[:2], args) for made, args in zip(self.launches, getters, strict=True)]
        get = itemgetter(*places) if isinstance(results, Tensor) else arguments.getter(places)
        return _Call(allocations, arguments.constants, arguments.made_parts(), launches, get)


def _form(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype


class _Arguments:
    """Arguments of launches as indices of a pool."""

    def __init__(self, recorder: _Recorder) -> None:
        self._places, self._tensors = recorder.places, len(recorder.tensors)
        self.constants: list[Any] = []
        self._parts: list[tuple[list[int], dict[str, Any] | None]] = []  # the latter of descriptors

    def indices(self, values: tuple[Any, ...]) -> list[int]:
        """Indices of values; those of parts count from -1 down until the constants are known.

        Raises ``KeyError`` for a tensor that is neither the call's nor allocated by it.
        """
        return [self._index(value) for value in values]

    def _index(self, value: Any) -> int:
        if isinstance(value, Tensor):
            return self._places[value.data_ptr()]
        if type(value) is TensorDescriptor:
            self._parts.append((self.indices((value.base,)), {**vars(value), "base": None}))
            return -len(self._parts)
        if isinstance(value, tuple):
            self._parts.append((self.indices(value), None))
            return -len(self._parts)
        self.constants.append(value)
        return self._tensors + len(self.constants) - 1

    def getter(self, indices: list[int]) -> Callable[[Pool], tuple[Any, ...]]:
        """The function that gives the values of a pool at ``indices``, as a tuple."""
        first = self._tensors + len(self.constants) - 1  # of the parts, which count from 1
        final = [i if i >= 0 else first - i for i in indices]
        if len(final) == 1:
            return lambda pool: (pool[final[0]],)
        return itemgetter(*final) if final else lambda pool: ()

    def made_parts(self) -> list[Callable[[Pool], Any]]:
        return [
            self.getter(indices) if fields is None else functools.partial(_described, fields, indices[0])
            for indices, fields in self._parts
        ]


def _described(fields: dict[str, Any], index: int, pool: Pool) -> TensorDescriptor:
    """A descriptor of another tensor of the same shape, strides and alignment, which need no check."""
    made = object.__new__(TensorDescriptor)
    vars(made).update(fields)
    made.base = pool[index]
    return made


def replayed(function: Callable[..., Any]) -> Callable[..., Any]:
    """Make an operator's function play its launches from the third of equal calls on.

    Args:
        function: takes a tensor, then tensors, numbers, names and lists of numbers; returns new tensors, one
            or a tuple. What it does depends on no entry of a tensor. Where that is more than allocations,
            transposes and launches, it is called as it is.
    """
    calls: dict[Any, _Call | bool] = {}  # True after one call, False where it cannot be played
    table: Any = None  # of measured choices, which the calls rest on

    @functools.wraps(function)
    def call(first: Tensor, *rest: Any, **options: Any) -> Any:
        nonlocal table
        target = launch.target_of(first.device)
        if options or target.backend != "cuda" or not launch.is_ready(first.device):
            return function(first, *rest, **options)
        if table is not (table := choices.table(target.device)):
            calls.clear()
        tensors = [first]
        key: list[Any] = [target, first.device, config._override, config.precision(first.dtype, target)]
        for argument in rest:
            if isinstance(argument, Tensor):
                tensors.append(argument)
                key.append(Tensor)
            else:
                key.append(tuple(argument) if isinstance(argument, list) else argument)
        addresses = [tensor.data_ptr() for tensor in tensors]
        for tensor, address in zip(tensors, addresses, strict=True):
            key += tensor.shape, tensor.stride(), tensor.dtype, address % 16, addresses.index(address)
        return _run(function, (first, *rest), tensors, calls, tuple(key))

    return call


def _run(
    function: Callable[..., Any],
    args: tuple[Any, ...],
    tensors: list[Tensor],
    calls: dict[Any, _Call | bool],
    key: tuple[Any, ...],
) -> Any:
    """A call that is played, recorded or neither."""
    kept = calls.get(key)
    if isinstance(kept, _Call) and kept.holds():
        return kept.play(tensors)
    if kept is not True:  # recording takes longer than a call: only for one that comes again
        if len(calls) >= _MOST:
            calls.clear()
        calls.setdefault(key, True)
        return function(*args)
    with _Recorder(tensors) as recorder, repeats.recorded(recorder):
        results = function(*args)
    calls[key] = recorder.call(results) or False
    return results
