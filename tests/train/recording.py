"""A stand-in for CUDA graphs on a CPU, as strict as they are.

Recording leaves every tensor as it was; a replay repeats the same operators on the same memory, with what
that memory holds by then and with new random numbers; whatever the host decided stays as it was decided; and
the host may not look at a value while it records.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

R = TypeVar("R")

_LOOKS = {"aten::_local_scalar_dense", "aten::equal", "aten::is_nonzero", "aten::nonzero"}


class _Tape(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.entries: list[tuple[Any, tuple[Any, ...], dict[str, Any], list[Any]]] = []
        self._before: list[tuple[Tensor, Tensor]] = []
        self._known: set[int] = set()  # storages made while recording, or kept already

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        schema = func._schema
        if schema.name in _LOOKS:
            raise RuntimeError(f"{schema.name}: operation not permitted when stream is capturing")
        for argument, value in zip(schema.arguments, args, strict=False):
            self._keep(argument, value)
        for argument in schema.arguments:
            if argument.name in kwargs:
                self._keep(argument, kwargs[argument.name])
        outputs = func(*args, **kwargs)
        results = [t for t in tree_leaves(outputs) if isinstance(t, Tensor)]
        given = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        own = [t for t in results if t.untyped_storage().data_ptr() not in given]
        self._known |= {t.untyped_storage().data_ptr() for t in own}
        self.entries.append((func, args, kwargs, results))
        return outputs

    def _keep(self, argument: Any, value: Any) -> None:
        if argument.alias_info is None or not argument.alias_info.is_write:
            return
        for tensor in tree_leaves(value):
            if isinstance(tensor, Tensor) and tensor.untyped_storage().data_ptr() not in self._known:
                self._known.add(tensor.untyped_storage().data_ptr())
                whole = torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())
                self._before.append((whole, whole.clone()))

    def undo(self) -> None:
        for tensor, before in self._before:
            tensor.copy_(before)

    def replay(self) -> None:
        with torch.no_grad():
            for func, args, kwargs, results in self.entries:
                leaves = tree_leaves(func(*args, **kwargs))
                for leaf in leaves:  # a stream would wait for a collective
                    wait = getattr(leaf, "wait", None) if isinstance(leaf, torch.ScriptObject) else None
                    if wait is not None:
                        wait()
                fresh = [t for t in leaves if isinstance(t, Tensor)]
                for old, new in zip(results, fresh, strict=True):
                    if old.untyped_storage().data_ptr() != new.untyped_storage().data_ptr():
                        old.copy_(new)


class RecordingCapture:
    """A :class:`fastae.train.graph.Capture`; counts what it was asked for."""

    def __init__(self) -> None:
        self.warmed_up = self.recorded = self.replayed = 0

    def warm_up(self, run: Callable[[], R]) -> R:
        self.warmed_up += 1
        return run()

    def record(self, run: Callable[[], R]) -> tuple[Callable[[], None], R]:
        tape = _Tape()
        generator = torch.get_rng_state()
        try:
            with tape:
                outputs = run()
        finally:
            tape.undo()
            torch.set_rng_state(generator)
        self.recorded += 1

        def replay() -> None:
            self.replayed += 1
            tape.replay()

        return replay, outputs
