"""The processes that compute one run together, as torchrun or ``fastae train --processes`` starts them."""

from __future__ import annotations

import pickle
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from ..errors import FileError
from ..share import Share, part_of

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

R = TypeVar("R")
E = TypeVar("E", bound=BaseException)

_POLL_SECONDS = 0.1
_MOST_CALLS = 1000  # between two polls


@dataclass
class World:
    """This process among those that train together; without arguments, a process of its own.

    Attributes:
        rank: number of the process, from 0.
        size: number of processes.
        device: where this process computes.
        local_size: number of processes on this machine.
        parts: number of processes that hold one copy of the parameters and see the same rows.
        group: the processes that hold the same parameters and see other rows; ``None`` for all.
        channel: the group in which all processes agree; ``None`` for the default one.
        limit: longest time that a process waits in a group.
        arrivals: number of times that this thread came to where it waits for the other processes.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    local_size: int = 1
    parts: int = 1
    group: Any = None
    channel: Any = None
    limit: timedelta = timedelta(minutes=30)
    arrivals: int = 0
    _beside: World | None = field(default=None, repr=False)
    _until_poll: int = field(default=1, repr=False)
    _calls: int = field(default=1, repr=False)
    _polled_at: float = field(default_factory=time.monotonic, repr=False)

    @property
    def leads(self) -> bool:
        """Whether this process writes and speaks for all."""
        return self.rank == 0

    @property
    def grouped(self) -> bool:
        """Whether there are other processes."""
        return self.size > 1

    # --- batches ----------------------------------------------------------------------------------------

    def share_rows(self, mesh: DeviceMesh) -> None:
        """Give all processes of a copy the same rows, in a grid [copies, parts] of this world."""
        self.parts, self.group = mesh.size(1), mesh.get_group(0)

    @property
    def row_rank(self) -> int:
        """Number of this process's part of each batch."""
        return self.rank // self.parts

    @property
    def row_size(self) -> int:
        """Number of the parts of a batch."""
        return self.size // self.parts

    def part(self, index: Tensor) -> Tensor:
        """This process's part of the rows of a batch, int64 [*, B]; never without any."""
        return index[..., part_of(index.shape[-1], self.row_rank, self.row_size)] if self.grouped else index

    def share(self, total: int) -> Share | None:
        """This process's part of a batch of ``total`` rows; ``None`` for a process of its own."""
        return Share(total, self.row_rank, self.row_size, self.group) if self.grouped else None

    def sum(self, values: Tensor) -> Tensor:
        """The sum over the parts of a batch, in place."""
        if self.row_size > 1:
            self.arrivals += 1
            torch.distributed.all_reduce(values, group=self.group)
        return values

    # --- agreement --------------------------------------------------------------------------------------

    def poll(self, *signals: float) -> list[float]:
        """The largest of each signal over the processes, so that all act on it at the same call.

        Processes exchange their signals about ten times a second, after a number of calls that they agree
        on; in between the signals are 0. One process has its own at every call.
        """
        if not self.grouped:
            return list(signals)
        self._until_poll -= 1
        if self._until_poll:
            return [0.0] * len(signals)
        self.arrivals += 1
        now = time.monotonic()
        values = torch.tensor([*signals, now - self._polled_at], dtype=torch.float64)
        torch.distributed.all_reduce(values, torch.distributed.ReduceOp.MAX)
        *largest, elapsed = values.tolist()
        calls = int(self._calls * _POLL_SECONDS / max(elapsed, 1e-6))
        self._until_poll = self._calls = min(max(calls, 1), _MOST_CALLS)
        self._polled_at = now
        return largest

    def barrier(self) -> None:
        """Wait for the other processes."""
        self.gather(None)

    def gather(self, value: R) -> list[R]:
        """Every process's value, by rank, on every process."""
        if not self.grouped:
            return [value]
        self.arrivals += 1
        values: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(values, value, group=self.channel)
        return values

    def first(self, function: Callable[[], R]) -> R:
        """What ``function`` gives on the first process, or its error, on every process."""
        result = None
        with self.agreed():
            if self.leads:
                result = function()
        return self.gather(result)[0]  # pyright: ignore[reportReturnType]

    @contextmanager
    def agreed(self) -> Iterator[None]:
        """Raise an error of any process within the block on all of them, at its end.

        ``elsewhere`` of the exception tells whether it is another process that reports it.
        """
        if not self.grouped:
            yield
            return
        error: Exception | None = None
        try:
            yield
        except Exception as caught:
            error = caught
        errors = self.gather(None if error is None else sendable(error))
        failed = [rank for rank, other in enumerate(errors) if other is not None]
        if not failed:
            return
        reporter = failed[0]
        cause = error if error is not None and self.rank == reporter else errors[reporter]
        assert cause is not None
        if len(failed) < self.size and reporter:
            cause = _named(cause, f"process {reporter} on {self.gather(socket.gethostname())[reporter]}")
        raise silenced(cause, elsewhere=self.rank != reporter) from error

    @contextmanager
    def apart(self) -> Iterator[World]:
        """The same processes for a second thread of each, which agree in a group of their own.

        All processes have to call this function. Only :meth:`gather` and what builds on it use that group.
        """
        if not self.grouped:
            yield self
            return
        group: Any = torch.distributed.new_group(timeout=self.limit, backend="gloo")
        arrivals = self.arrived - self.arrivals  # those of an earlier thread count on
        self._beside = replace(self, channel=group, arrivals=arrivals, _beside=None)
        try:
            yield self._beside
        finally:
            torch.distributed.destroy_process_group(group)

    @property
    def arrived(self) -> int:
        """``arrivals`` of this thread and of the one beside it."""
        return self.arrivals + (0 if self._beside is None else self._beside.arrivals)

    def check_same(self, **values: Any) -> None:
        """Refuse to go on unless every process has the same values.

        Raises:
            ValueError: it names the value and a process that has another one.
        """
        first, *others = self.gather(values)
        for rank, other in enumerate(others, 1):
            for name, value in other.items():
                if value != first[name]:
                    message = f"{name}: expected the same on all processes, got another on process {rank}"
                    raise silenced(ValueError(message), elsewhere=not self.leads)


ALONE = World()
"""A process of its own, on the CPU."""


def silenced(error: BaseException, *, elsewhere: bool) -> BaseException:
    """An error that the command line reports, or leaves to another process."""
    error.elsewhere = elsewhere  # pyright: ignore[reportAttributeAccessIssue]
    return error


def sendable(error: E) -> E | Exception:
    """An error without its traceback and causes, or one like it where it cannot be sent."""
    try:
        sent = pickle.loads(pickle.dumps(error))
        return sent if type(sent) is type(error) and str(sent) == str(error) else ValueError(str(error))
    except Exception:  # whatever an exception's own class does
        return RuntimeError(str(error))


def _named(error: Exception, process: str) -> Exception:
    """An error that names the process it comes from."""
    kind = type(error) if isinstance(error, FileError) else ValueError
    return kind(f"{process}: {error}")
