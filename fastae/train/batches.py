"""Batches of a stage, from tensors on the device or from files read ahead by a thread."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..threads import submit
from .data import Rows

_READ_AHEAD = 3
_CHUNK = 4096

Batch = tuple[Tensor, "Tensor | None"]
"""Features [B, D] and labels [B]."""

Call = tuple[tuple["Tensor | None", ...], int, int]
"""The arguments of a call of :class:`~fastae.train.step.TrainingStep`, and its numbers of steps and rows."""


class Source(Protocol):
    """Rows that batches are gathered from by index."""

    def __len__(self) -> int: ...

    def batches(self, order: Tensor, size: int) -> Iterator[Batch]:
        """Batches of ``size`` rows in ``order`` (int64 [N], on the CPU); the last may be smaller."""
        ...

    @property
    def data(self) -> tuple[Tensor | None, ...]:
        """Tensors that a training step gathers its batches from; empty where it is called with them."""
        ...

    def calls(self, order: Tensor, size: int, steps: int) -> Iterator[Call]:
        """The same batches as calls of a training step, where it may be of ``steps`` steps each."""
        ...


@dataclass(frozen=True)
class Resident:
    """All rows on the device: a batch is one gather, without a DataLoader."""

    x: Tensor
    labels: Tensor | None = None

    def __len__(self) -> int:
        return len(self.x)

    def batches(self, order: Tensor, size: int) -> Iterator[Batch]:
        # splitting nothing would give one batch of nothing
        for index in order.to(self.x.device).split(size) if len(order) else ():
            labels = None if self.labels is None else self.labels.index_select(0, index)
            yield self.x.index_select(0, index), labels

    @property
    def data(self) -> tuple[Tensor | None, ...]:
        return self.x, self.labels

    def calls(self, order: Tensor, size: int, steps: int) -> Iterator[Call]:
        order = order.to(self.x.device)
        whole = len(order) // size * size
        for part in order[:whole].split(size * steps) if whole else ():
            yield (part.view(-1, size),), len(part) // size, len(part)
        if whole < len(order):
            yield (order[None, whole:],), 1, len(order) - whole


@dataclass(frozen=True)
class Streamed:
    """Rows that do not fit: read ahead by a thread, then taken through ``transform`` on the device."""

    rows: Rows
    device: torch.device
    dtype: torch.dtype
    transform: Callable[[Tensor], Tensor] | None = None

    data = ()

    def __len__(self) -> int:
        return len(self.rows)

    def calls(self, order: Tensor, size: int, steps: int) -> Iterator[Call]:
        for batch in self.batches(order, size):
            yield batch, 1, len(batch[0])

    def batches(self, order: Tensor, size: int) -> Iterator[Batch]:
        targets = self.rows.targets

        def read(index: Tensor) -> Batch:
            x = torch.from_numpy(self.rows.read(index.numpy())).to(self.dtype)
            labels = None if targets is None else torch.from_numpy(targets[index.numpy()])
            if self.device.type == "cuda":
                return x.pin_memory(), labels
            return x, labels

        waiting = deque(order.split(size) if len(order) else ())
        ahead: deque[Future[Batch]] = deque()
        with ThreadPoolExecutor(1, thread_name_prefix="fastae-reader") as reader:
            try:
                while waiting or ahead:
                    while waiting and len(ahead) < _READ_AHEAD:
                        ahead.append(submit(reader, read, waiting.popleft()))
                    x, labels = ahead.popleft().result()
                    x = x.to(self.device, non_blocking=True)
                    labels = None if labels is None else labels.to(self.device, non_blocking=True)
                    yield (x if self.transform is None else self.transform(x)), labels
            finally:
                for job in ahead:
                    job.cancel()


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
) -> Resident | Streamed:
    """Rows, or their codes ``encode(x)`` [B, width], as a source.

    They are computed once and kept on the device where they take at most ``budget`` bytes, and read and
    encoded batch by batch otherwise.
    """
    size = len(rows) * (width or rows.width) * dtype.itemsize
    if size > budget:
        return Streamed(rows, device, dtype, encode)
    kept = torch.empty(len(rows), width or rows.width, dtype=dtype, device=device)
    for place, values in rows.chunks(_CHUNK):
        chunk = torch.from_numpy(values).to(device, dtype)
        kept[place] = chunk if encode is None else encode(chunk)
    labels = None if rows.targets is None else torch.from_numpy(rows.targets).to(device)
    return Resident(kept, labels)
