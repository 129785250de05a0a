"""Tensors from an iterator as a data set that is read in order."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...errors import DataError
from ...tensors import fill_missing
from .dataset import Dataset
from .parts import LARGEST
from .rows import Rows
from .scaling import AffineScaling

_KINDS = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.uint8)


class Stream:
    """Rows [N, D] of an iterator, read from the first to the last; see :func:`dataset_from_iterator`."""

    is_sequential: bool = True
    is_checked: bool = True  # as it is read
    ranges: tuple[np.ndarray, np.ndarray] | None = None

    def __init__(
        self, name: str, make: Callable[..., Iterable[Any]], rows: int, missing: bool = False
    ) -> None:
        if rows < 1:
            raise DataError(f"{name}: rows: expected at least 1, got {rows}")
        self.name, self._make, self._missing = name, make, missing
        self._takes_start = "start" in inspect.signature(make).parameters
        self._begin(0)
        first = self._next_part()
        if first.dim() < 2 or first.dtype not in _KINDS:
            raise DataError(f"{name}: expected tensors [..., D] of real numbers, got {_form(first)}")
        self._part: Tensor | None = first
        self.shape = (rows, int(first.shape[-1]))
        self.kind = str(first.dtype).removeprefix("torch.")
        self._dtype = first.dtype
        self.dtype = np.dtype(np.float32) if self.kind == "bfloat16" else np.dtype(self.kind)

    def _begin(self, start: int) -> None:
        self._iterator: Iterator[Any] = iter(self._make(start=start) if self._takes_start else self._make())
        self._place = start if self._takes_start else 0
        self._part = None

    def _next_part(self) -> Tensor:
        part = next(self._iterator, None)
        if part is None:
            raise DataError(f"{self.name}: the iterator ended after {self._place} rows")
        return torch.as_tensor(part).detach()

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        if isinstance(rows, slice):
            rows = np.arange(*rows.indices(len(self)))
        order = np.argsort(rows, kind="stable")
        raw, out = self.raw(len(rows)), self.raw(len(rows))
        self.read_into(rows[order], raw)
        out[order] = raw
        return self.decode(out)

    def raw(self, rows: int) -> np.ndarray:
        stored = np.uint16 if self.kind == "bfloat16" else self.dtype
        return np.empty((rows, self.shape[1]), stored)

    def decode(self, raw: np.ndarray) -> np.ndarray:
        return self._tensor(raw).float().numpy() if self.kind == "bfloat16" else raw

    def _tensor(self, raw: np.ndarray) -> Tensor:
        """A view of stored values."""
        if self.kind == "bfloat16":
            return torch.from_numpy(raw.view(np.int16)).view(torch.bfloat16)
        return torch.from_numpy(raw)

    def read_into(self, rows: np.ndarray, out: np.ndarray) -> None:
        if len(rows) and rows[0] < self._place:
            self._begin(int(rows[0]))
        done, into = 0, self._tensor(out)
        while done < len(rows):
            part = self._rows_of(self._next_part() if self._part is None else self._part)
            high = int(np.searchsorted(rows, self._place + len(part)))
            index = torch.from_numpy(rows[done:high] - self._place)
            into[done:high] = part[index]
            used = len(part) if high < len(rows) else int(rows[-1]) + 1 - self._place
            self._part = part[used:] if high == len(rows) else None
            self._place += used
            done = high

    def _rows_of(self, part: Tensor) -> Tensor:
        """The rows of a tensor, on the CPU, checked."""
        if part.shape[-1] != self.shape[1] or part.dtype != self._dtype:
            raise DataError(
                f"{self.name}: expected [..., {self.shape[1]}] of {self.kind}, got {_form(part)} after"
                f" {self._place} rows"
            )
        rows = part.reshape(-1, self.shape[1]).cpu()
        if rows.is_floating_point():
            most = min(float(LARGEST), torch.finfo(rows.dtype).max)
            if not (fill_missing(rows, self._missing).abs() <= most).all():
                kinds = "infinite" if self._missing else "NaN (which needs missing=True), infinite"
                raise DataError(f"{self.name}: {kinds} or beyond {most:.0e} after {self._place} rows")
        return rows

    def edges(self, size: int) -> np.ndarray:
        return np.append(np.arange(0, len(self), size), len(self))

    def fingerprint(self) -> str:
        return f"{self.shape[0]} x {self.shape[1]} {self.kind}"

    def difference(self, fingerprint: str) -> str:
        return ""


def dataset_from_iterator(
    name: str,
    make: Callable[..., Iterable[Any]],
    rows: int,
    *,
    scaling: AffineScaling | None = None,
    missing: bool = False,
) -> Dataset:
    """Make a data set of tensors that an iterator gives, of which few are in memory at a time.

    An epoch is ``rows`` rows of ``make()``, which is called again for each pass. Rows are mixed in a buffer
    of one window (``window_mib``), which is emptied before it is filled again, while a second one fills:
    where a run stands is then a number of rows. A run goes on exactly where it was interrupted if ``make``
    gives the same rows at every call. If it takes an argument ``start``, it is called with the number of
    rows to leave out; otherwise they are read and dropped. A run whose iterator gives other rows at the
    second call can be resumed, but not exactly, and nothing tells whether the rows are still the same.

    The first rows are the ones held out for validation. ``make`` runs in a thread that reads ahead: random
    numbers should come from a generator of its own. The last rows are dropped where the iterator has more.

        def activations(start: int = 0):
            for batch in batches_of_text(start):
                yield model(batch)

        train(config, dataset=dataset_from_iterator("activations", activations, rows=10_000_000))

    Args:
        name: begins the messages of errors.
        make: gives an iterable of tensors or arrays [..., D] of one dtype, on any device.
        rows: per epoch.
        scaling: what to apply; nothing by default, as nothing is read to fit one.
        missing: whether NaN stands for missing values, which the run's option of that name leaves out.

    Raises:
        DataError: no rows, or tensors of another form; also while training.
    """
    scaling = scaling or AffineScaling("none", np.zeros(()), np.ones(()))
    stream = Stream(name, make, rows, missing)
    if scaling.width not in (None, stream.shape[1]):
        raise DataError(f"{name}: {stream.shape[1]} columns, where the scaling has {scaling.width}")
    return Dataset(name, Rows(stream, None, scaling), None, (stream.shape[1],), scaling, missing=missing)


def _form(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
