"""Batches of a stage, from tensors on the device or from files read ahead by a thread."""

from __future__ import annotations

import functools
import os
from collections import deque
from collections.abc import Callable, Iterator, Sized
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ..distributed import ALONE, World
from ..threads import submit
from .data.rows import Rows
from .order import Order, WindowOrder, parts_of_batches
from .seeds import epoch_order

_READ_AHEAD = 3
_CHUNK = 4096

Batch = tuple[Tensor, "Tensor | None"]
"""Features [B, D] and labels [B]."""

Call = tuple[tuple["Tensor | None", ...], int, int]
"""The arguments of a call of :class:`~fastae.train.step.TrainingStep`, and its numbers of steps and rows;
the rows are those of all processes."""


class Source(Protocol):
    """Rows that batches are gathered from by index."""

    def __len__(self) -> int: ...

    def order(self, seed: int) -> Order:
        """The order of an epoch."""
        ...

    def batches(self, order: Order, size: int, start: int = 0, world: World = ALONE) -> Iterator[Batch]:
        """This process's part of batches of ``size`` rows in an order, from position ``start`` on.

        The last batch may be smaller.
        """
        ...

    @property
    def data(self) -> tuple[Tensor | None, ...]:
        """Tensors that a training step gathers its batches from; empty where it is called with them."""
        ...

    def calls(
        self, order: Order, size: int, steps: int, start: int = 0, world: World = ALONE
    ) -> Iterator[Call]:
        """The same batches as calls of a training step, where it may be of ``steps`` steps each."""
        ...


class _Ordered(Sized):
    """Orders of an epoch, windowed where ``window`` says so.

    Attributes:
        window: rows per window; 0 for a full permutation.
        edges: of the blocks of rows that a windowed order keeps together.
        sequential: whether the blocks keep their order.
    """

    window: int = 0
    edges: np.ndarray | None = None
    sequential: bool = False

    def order(self, seed: int) -> Order:
        if not self.window or self.edges is None:
            return epoch_order(len(self), seed)
        return WindowOrder(self.edges, self.window, seed, sequential=self.sequential)


@dataclass(frozen=True)
class Resident(_Ordered):
    """All rows on the device: a batch is one gather, without a DataLoader."""

    x: Tensor
    labels: Tensor | None = None
    window: int = 0
    edges: np.ndarray | None = None
    sequential: bool = False

    def __len__(self) -> int:
        return len(self.x)

    def batches(self, order: Order, size: int, start: int = 0, world: World = ALONE) -> Iterator[Batch]:
        for index in map(world.part, _split(order[start:].to(self.x.device), size)):
            labels = None if self.labels is None else self.labels.index_select(0, index)
            yield self.x.index_select(0, index), labels

    @property
    def data(self) -> tuple[Tensor | None, ...]:
        return self.x, self.labels

    def calls(
        self, order: Order, size: int, steps: int, start: int = 0, world: World = ALONE
    ) -> Iterator[Call]:
        order = order[start:].to(self.x.device)
        whole = len(order) // size * size
        for part in _split(order[:whole], size * steps):
            yield (world.part(part.view(-1, size)),), len(part) // size, len(part)
        if whole < len(order):
            yield (world.part(order[None, whole:]),), 1, len(order) - whole


@dataclass(frozen=True)
class Streamed(_Ordered):
    """Rows that do not fit: read ahead by threads, then taken through ``transform`` on the device.

    In a windowed order two windows of stored values are in memory, the one that batches are taken from and
    the next one, which a thread reads meanwhile; otherwise a few batches.
    """

    rows: Rows
    device: torch.device
    dtype: torch.dtype
    transform: Callable[[Tensor], Tensor] | None = None
    window: int = 0
    edges: np.ndarray | None = None
    sequential: bool = False
    spare: list[np.ndarray] = field(default_factory=list, repr=False)

    data = ()

    def __len__(self) -> int:
        return len(self.rows)

    def calls(
        self, order: Order, size: int, steps: int, start: int = 0, world: World = ALONE
    ) -> Iterator[Call]:
        spans = parts_of_batches(len(order), size, start)
        for (low, high), batch in zip(spans, self.batches(order, size, start, world), strict=True):
            yield batch, 1, high - low

    def batches(self, order: Order, size: int, start: int = 0, world: World = ALONE) -> Iterator[Batch]:
        spans = parts_of_batches(len(order), size, start, world.row_rank, world.row_size)
        waiting = deque((low, max(high, low + 1)) for low, high in spans)  # never without a row
        ahead: deque[Future[Batch]] = deque()
        with ExitStack() as held:
            read: Callable[[int, int], Batch]
            if isinstance(order, WindowOrder):
                loader = ThreadPoolExecutor(1, thread_name_prefix="fastae-reader")
                windows = _Windows(
                    self.rows, order, size, start, loader, self.spare, world.row_rank, world.row_size
                )
                held.callback(lambda: self.spare.extend(windows.buffers))  # once nothing reads any more
                held.enter_context(loader)
                read = functools.partial(self._read_from, windows)
            else:
                read = functools.partial(self._read, order)
            reader = held.enter_context(ThreadPoolExecutor(1, thread_name_prefix="fastae-reader"))
            try:
                while waiting or ahead:
                    while waiting and len(ahead) < _READ_AHEAD:
                        ahead.append(submit(reader, read, *waiting.popleft()))
                    x, labels = ahead.popleft().result()
                    x = x.to(self.device, non_blocking=True).to(self.dtype)
                    labels = None if labels is None else labels.to(self.device, non_blocking=True)
                    yield (x if self.transform is None else self.transform(x)), labels
            finally:
                for job in ahead:
                    job.cancel()

    def _read(self, order: Tensor, low: int, high: int) -> Batch:
        index = order[low:high].numpy()
        return self._on_host(torch.from_numpy(self.rows.read(index)).to(self.dtype), index)

    def _read_from(self, windows: _Windows, low: int, high: int) -> Batch:
        raw, index = windows.read(low, high)
        x = self.rows.plain(raw)
        if x is None:
            x = torch.from_numpy(self.rows.scale(raw))
        if self.device.type == "cpu":  # other devices take the stored dtype, which has fewer bytes
            x = x.to(self.dtype)
        return self._on_host(x, index)

    def _on_host(self, x: Tensor, index: np.ndarray) -> Batch:
        targets = self.rows.targets
        labels = None if targets is None else torch.from_numpy(targets[index])
        return x.pin_memory() if self.device.type == "cuda" else x, labels


class _Windows:
    """The stored values of two windows of an order: batches are taken from one while the next one is read.

    Args:
        rows: what to read.
        order: of the rows.
        size: rows per global batch.
        start: first position that is read.
        loader: runs the reads.
        spare: buffers of epochs before, which are taken out where they fit.
        rank, world: of the process; only the rows of its part of each batch are read.
    """

    def __init__(
        self,
        rows: Rows,
        order: WindowOrder,
        size: int,
        start: int,
        loader: Executor,
        spare: list[np.ndarray],
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self._rows, self._order, self._loader = rows, order, loader
        self._part = functools.partial(_own_positions, len(order), size, rank, world)
        self._start, self._now = start, order.window_of(start) - 1
        longest = order.longest
        if world > 1:
            longest = min(longest, (longest // size + 2) * -(-size // world))
        kept = [spare.pop() for _ in range(len(spare))]
        fitting = [buffer for buffer in kept if len(buffer) >= longest][:2]
        self.buffers = fitting + [rows.raw(longest) for _ in range(2 - len(fitting))]
        self._load_ahead()

    def _load_ahead(self) -> None:
        if self._now + 2 < len(self._order.windows):
            self._loading = submit(self._loader, self._load, self._now + 1)

    def read(self, low: int, high: int) -> tuple[np.ndarray, np.ndarray]:
        """Stored values [B, D] at positions of this rank, and the numbers of the rows; called in order."""
        raw, index = self._rows.raw(high - low), np.empty(high - low, np.int64)
        place = low
        while place < high:
            number = self._order.window_of(place)
            while self._now < number:
                self._window = self._loading.result()
                self._now += 1
                self._load_ahead()
            positions, rows, places = self._window
            first = int(np.searchsorted(positions, place))
            taken = slice(first, first + min(high, int(self._order.windows[number + 1])) - place)
            out = slice(place - low, place - low + taken.stop - taken.start)
            np.take(self.buffers[number % 2], places[taken], axis=0, out=raw[out], mode="clip")
            index[out] = rows[taken]
            place += taken.stop - taken.start
        return raw, index

    def _load(self, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Read a window: positions in the order, the rows there, and their places in the buffer, [P] each."""
        low, high = self._order.windows[number : number + 2]
        positions = self._part(max(int(low), self._start), int(high))
        rows = self._order[int(low) : int(high)].numpy()[positions - low]
        by_row = np.argsort(rows)
        places = np.empty_like(by_row)
        places[by_row] = np.arange(len(rows))
        self._rows.read_raw(rows[by_row], self.buffers[number % 2][: len(rows)])
        return positions, rows, places


def _own_positions(rows: int, size: int, rank: int, world: int, low: int, high: int) -> np.ndarray:
    """The positions from ``low`` to ``high`` in a rank's parts, as of :func:`~.order.parts_of_batches`.

    A part without rows has the one that follows.
    """
    positions = np.arange(low, high)
    batch = positions - positions % size
    taken = np.minimum(size, rows - batch)
    first = taken * rank // world
    end = np.maximum(taken * (rank + 1) // world, first + 1)
    return positions[(positions - batch >= first) & (positions - batch < end)]


def _split(order: Tensor, size: int) -> tuple[Tensor, ...]:
    """``order`` in parts of ``size`` rows; none of nothing, where torch gives an empty one."""
    return order.split(size) if len(order) else ()


def free_memory(device: torch.device) -> int:
    """Bytes that are free on the device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # systems that do not tell
        return 4 << 30


def open_rows(
    rows: Rows,
    device: torch.device,
    dtype: torch.dtype,
    budget: int,
    encode: Callable[[Tensor], Tensor] | None = None,
    width: int | None = None,
    window_mib: float | None = None,
) -> Resident | Streamed:
    """Rows, or their codes ``encode(x)`` [B, width], as a source.

    They are computed once and kept on the device where they take at most ``budget`` bytes, and read and
    encoded batch by batch otherwise. Either way the order is that of windows of ``window_mib``, as of
    :meth:`.data.Rows.window`.
    """
    window = rows.window(window_mib)
    edges = rows.edges(window) if window else None
    ordered = (window, edges, rows.is_sequential)
    size = len(rows) * (width or rows.width) * dtype.itemsize
    if size > budget:
        return Streamed(rows, device, dtype, encode, *ordered)
    kept = torch.empty(len(rows), width or rows.width, dtype=dtype, device=device)
    for place, values in rows.chunks(_CHUNK):
        chunk = torch.from_numpy(values).to(device, dtype)
        kept[place] = chunk if encode is None else encode(chunk)
    labels = None if rows.targets is None else torch.from_numpy(rows.targets).to(device)
    return Resident(kept, labels, *ordered)
