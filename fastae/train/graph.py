"""Functions of tensors that are captured as a CUDA graph and replayed: one launch for all their kernels."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from ..errors import first_line

R = TypeVar("R")


class Capture(Protocol):
    """Recording and replaying of work on one device."""

    def warm_up(self, run: Callable[[], R]) -> R:
        """Run for real, where recording will take place."""
        ...

    def record(self, run: Callable[[], R]) -> tuple[Callable[[], None], R]:
        """Return the replay of the work of ``run``, and the result that each replay overwrites."""
        ...


class CudaCapture:
    """CUDA graphs on a stream of their own, all in one pool of memory."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def warm_up(self, run: Callable[[], R]) -> R:
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            result = run()
        current.wait_stream(self._stream)
        return result

    def record(self, run: Callable[[], R]) -> tuple[Callable[[], None], R]:
        graph = torch.cuda.CUDAGraph()
        try:
            # other threads may go on allocating: a reader that pins the next batches, say. The outer stream
            # brings the current one back, which the graph does not where ending the capture fails
            with (
                torch.cuda.device(self._device),
                torch.cuda.stream(self._stream),
                torch.cuda.graph(
                    graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
                ),
            ):
                result = run()
        except Exception:
            self._recover()
            raise
        return graph.replay, result

    def _recover(self) -> None:
        """Close the pool, and end a capture well: torch's generator then draws outside of captures again."""
        with suppress(RuntimeError):  # only torch 2.11 leaves the pool open where ending a capture failed
            torch._C._cuda_endAllocateToPool(self._stream.device_index, self._pool)
            torch._C._cuda_releasePool(self._stream.device_index, self._pool)
        stream = torch.cuda.Stream(self._device)
        with (
            suppress(RuntimeError),
            torch.cuda.device(self._device),
            torch.cuda.stream(stream),
            torch.cuda.graph(torch.cuda.CUDAGraph(), stream=stream, capture_error_mode="thread_local"),
        ):
            torch.zeros(1, device=self._device)


def capture_on(device: torch.device) -> tuple[Capture | None, str]:
    """(how to capture on a device or ``None``, why)."""
    if device.type != "cuda":
        return None, f"{device.type} has no graphs; the step runs as it is"
    return CudaCapture(device), "captured as a CUDA graph and replayed"


@dataclass(frozen=True)
class _Recorded:
    inputs: list[Tensor | None]
    replay: Callable[[], None]
    outputs: Any


class Graphed:
    """A function of tensors and ``None``s that is run as it is at first, then captured and replayed.

    Each combination of shapes, dtypes and constants is captured apart, after ``warm_up`` calls that count as
    any other, and at most ``limit`` of them; further ones always run as they are. What the function reads
    besides its arguments must stay where it is in memory; what it does on the host happens during capture
    only. The outputs are overwritten by the next call.

    Attributes:
        problem: why a capture failed, after which nothing is captured any more; ``None`` until then.
    """

    def __init__(
        self, function: Callable[..., Any], capture: Capture, *, warm_up: int = 3, limit: int = 4
    ) -> None:
        self.problem: str | None = None
        self._function, self._capture = function, capture
        self._warm_up, self._limit = warm_up, limit
        self._calls: dict[Any, int] = {}
        self._recorded: dict[Any, _Recorded] = {}

    def __call__(self, *inputs: Tensor | None, **constants: Hashable) -> Any:
        shapes = tuple(None if t is None else (t.shape, t.dtype, t.device) for t in inputs)
        key = shapes, *constants.values()
        function = partial(self._function, **constants)
        recorded = self._recorded.get(key)
        if recorded is None:
            if self.problem is not None or len(self._recorded) >= self._limit:
                return function(*inputs)
            calls = self._calls.get(key, 0)
            if calls < self._warm_up:
                self._calls[key] = calls + 1
                # copies, as in the recording: kernels are compiled for how their operands are aligned
                return self._capture.warm_up(partial(function, *_copies(inputs)))
            recorded = self._record(function, inputs)
            if recorded is None:
                return function(*inputs)
            self._recorded[key] = recorded
        for own, given in zip(recorded.inputs, inputs, strict=True):
            if own is not None:
                own.copy_(given, non_blocking=True)  # pyright: ignore[reportArgumentType]
        recorded.replay()
        return recorded.outputs

    def _record(self, function: Callable[..., Any], inputs: tuple[Tensor | None, ...]) -> _Recorded | None:
        own = _copies(inputs)
        try:
            replay, outputs = self._capture.record(partial(function, *own))
        except Exception as error:  # whatever cannot be captured can still be run
            cause = error.__context__ or error  # ending a broken capture raises once more
            self.problem = first_line(cause)
            self._recorded.clear()
            return None
        return _Recorded(own, replay, outputs)


def _copies(inputs: tuple[Tensor | None, ...]) -> list[Tensor | None]:
    return [None if t is None else t.clone() for t in inputs]
