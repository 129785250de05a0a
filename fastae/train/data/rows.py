"""Scaled rows over any storage, read on demand, and how they are split."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from .labels import encode_labels
from .parts import RowArray, blocks, is_sparse, is_stored
from .scaling import AffineScaling
from .spans import RowIndex, Spans

WINDOW_MIB = 256.0
"""Stored values of a window by default, for files of shards."""
_WHOLE_BYTES = 1 << 30  # of a memory map that are all hashed
_STRIDED_BLOCKS, _STRIDED_BYTES = 1024, 1 << 16
_MOST_SPANS = 1 << 14  # of the rows that a split holds out of files
_BLOCK = 256  # rows of a block that a windowed order keeps together while it reads


@dataclass(frozen=True, eq=False, repr=False)
class Rows:
    """Scaled float32 rows [N, D] over an array, a memory map, shards or a CSR matrix, read on demand.

    Attributes:
        array: the stored values, unscaled, in the file's dtype.
        labels: [N] as they were given (text, booleans, int64 or float64), or None.
        scaling: applied to every read.
        index: int [N] or spans, the rows of ``array`` that these rows are; None for all.
        classes: [K], the different labels; None where labels are class numbers already, or no classes.
    """

    array: RowArray
    labels: np.ndarray | None
    scaling: AffineScaling
    index: RowIndex | None = None
    classes: np.ndarray | None = None

    def __len__(self) -> int:
        return self.array.shape[0] if self.index is None else len(self.index)

    @property
    def width(self) -> int:
        """D, the number of columns."""
        return self.array.shape[1]

    @property
    def is_mapped(self) -> bool:
        """True if the values stay on disk until they are read."""
        return isinstance(self.array, np.memmap) or is_stored(self.array)

    @property
    def is_sequential(self) -> bool:
        """Whether rows can only be read from the first to the last."""
        return is_stored(self.array) and self.array.is_sequential

    @property
    def nbytes(self) -> int:
        """Bytes that all rows take as dense float32."""
        return len(self) * self.width * np.dtype(np.float32).itemsize

    @cached_property
    def targets(self) -> np.ndarray | None:
        """Labels as class numbers 0..K-1, int64 [N]; None without labels and where they are no classes."""
        if self.labels is None:
            return None
        if self.classes is not None:
            return encode_labels(self.labels, self.classes)
        return self.labels.astype(np.int64) if self.labels.dtype.kind in "iu" else None

    def read(self, index: slice | np.ndarray | None = None) -> np.ndarray:
        """Read rows into a new float32 array [B, D], C-contiguous, in the order of ``index``.

        Args:
            index: a slice, an integer array [B] (negative counts from the end), or None for all rows.

        Raises:
            IndexError: for an index that is out of range, not integers or not one-dimensional.
        """
        rows = self._stored_rows(index)
        if is_sparse(self.array):
            return self._read_sparse(rows)
        if isinstance(rows, np.ndarray) and self.is_mapped:
            order = np.argsort(rows)  # each page of the file is touched once
            read = np.empty((len(rows), self.width), np.float32)
            read[order] = self.scaling.apply(np.asarray(self.array[rows[order]]))
            return read
        return self.scaling.apply(self.array[rows])

    def chunks(self, size: int) -> Iterator[tuple[slice, np.ndarray]]:
        """All rows in order, ``size`` at a time, each with its place."""
        for low in range(0, len(self), size):
            place = slice(low, min(low + size, len(self)))
            yield place, self.read(place)

    def fingerprint(self) -> str:
        """A digest of all stored values, the labels and the scaling: another row gives another digest.

        Of a memory map of more than 1 GiB, blocks spread over the file are read, and its size and time of
        modification are taken instead of the rest.
        """
        digest = hashlib.sha256(f"{len(self)} x {self.width}, {self.array.dtype}".encode())

        def add(values: np.ndarray) -> None:
            digest.update(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data)

        index = [self.index.low, self.index.high] if isinstance(self.index, Spans) else [self.index]
        base = () if self.scaling.base is None else (self.scaling.base,)
        for values in (self.scaling.offset, self.scaling.scale, *base, *index, self.labels, self.classes):
            digest.update(b"none" if values is None else f"{values.dtype} {values.shape}".encode())
            if values is not None:
                add(values)
        if is_stored(self.array):
            return f"shards:{digest.hexdigest()}/{self.array.fingerprint()}"
        if is_sparse(self.array):
            for values in (self.array.data, self.array.indices, self.array.indptr):
                add(values)
        elif not self.is_mapped or self.array.nbytes <= _WHOLE_BYTES:
            for block in blocks(self.array):
                add(block)
        else:
            rows = max(1, _STRIDED_BYTES // max(1, self.array[:1].nbytes))
            for low in np.linspace(0, len(self.array) - rows, _STRIDED_BLOCKS).astype(np.int64):
                add(self.array[low : low + rows])
            file = os.stat(self.array.filename)  # pyright: ignore[reportAttributeAccessIssue]
            digest.update(f"{file.st_size} bytes, {file.st_mtime_ns}".encode())
        return f"all:{digest.hexdigest()}"

    def matches(self, fingerprint: str) -> bool:
        """True if these are the rows that a fingerprint, also of the first format, was taken of."""
        if is_stored(self.array):
            return fingerprint == self.fingerprint()
        return fingerprint in (self.fingerprint(), self.sample_fingerprint())

    def difference(self, fingerprint: str) -> str:
        """Which file is not as it was when a fingerprint was taken, as far as that can be told, or ""."""
        kept = fingerprint.partition("/")[2]
        return self.array.difference(kept) if is_stored(self.array) and kept else ""

    def sample_fingerprint(self) -> str:
        """The fingerprint of the first format: a digest of 64 scaled rows and of the labels."""
        sample = self._stored_rows(np.linspace(0, len(self) - 1, 64).astype(np.int64))
        taken: Any = self.array[sample]
        x = (taken.toarray() if is_sparse(self.array) else taken).astype(np.float32)
        if self.scaling.offset.any():
            x -= self.scaling.offset.astype(np.float32)
        if (self.scaling.scale != 1).any():
            x *= self.scaling.scale.astype(np.float32)
        digest = hashlib.sha256(f"{len(self)} x {self.width}".encode())
        digest.update(x.tobytes())
        if self.labels is not None:
            digest.update(self.labels.tobytes())
        return digest.hexdigest()

    def subset(self, index: slice | RowIndex) -> Rows:
        """The rows at ``index``, as for :meth:`read` or as spans, without reading them."""
        if isinstance(index, Spans):
            rows = index if self.index is None else self.index[index[:]]
            labels = None if self.labels is None else self.labels[index[:]]
            return Rows(self.array, labels, self.scaling, rows, self.classes)
        rows = self._stored_rows(index)
        if isinstance(rows, slice):
            rows = np.arange(*rows.indices(len(self)))
        labels = None if self.labels is None else self.labels[index]
        return Rows(self.array, labels, self.scaling, rows, self.classes)

    # --- windows ------------------------------------------------------------------------------------------

    def window(self, mib: float | None) -> int:
        """Rows per window of a windowed order of ``mib`` MiB of stored values; 0 for one window of all rows.

        Args:
            mib: of values as they are stored, 0 for all; by default 256 for shards, and 0 otherwise.
        """
        if is_sparse(self.array):
            return 0
        if mib is None:
            mib = WINDOW_MIB if is_stored(self.array) else 0
        stored = self.raw(1).nbytes
        rows = max(1, int(mib * 2**20 / stored)) if mib else 0
        if self.is_sequential:
            return min(rows or len(self), len(self))
        return rows if rows < len(self) else 0

    def edges(self, window: int) -> np.ndarray:
        """The first row of each block of consecutive rows for windows of so many rows, and N; int64."""
        size = max(1, min(_BLOCK, window // 16))
        if is_stored(self.array):
            edges = self.array.edges(size)
        else:
            edges = np.append(np.arange(0, self.array.shape[0], size), self.array.shape[0])
        if isinstance(self.index, Spans):
            edges = self.index.positions(edges)
        elif self.index is not None:
            if (np.diff(self.index) < 0).any():
                return np.append(np.arange(0, len(self), size), len(self))
            edges = np.searchsorted(self.index, edges)
        return np.unique(edges)

    def raw(self, rows: int) -> np.ndarray:
        """An empty array [rows, D] of the stored dtype, for :meth:`read_raw`."""
        if is_stored(self.array):
            return self.array.raw(rows)
        return np.empty((rows, self.width), self.array.dtype)

    def read_raw(self, index: np.ndarray, out: np.ndarray) -> None:
        """Read stored values of the rows at rising numbers into an array of :meth:`raw`; dense rows only."""
        rows = self._stored_rows(index)
        assert isinstance(rows, np.ndarray)
        if is_stored(self.array):
            self.array.read_into(rows, out)
        else:
            assert isinstance(self.array, np.ndarray)
            np.take(self.array, rows, axis=0, out=out, mode="clip")

    def plain(self, raw: np.ndarray) -> torch.Tensor | None:
        """The same as a tensor of the stored dtype, where float32 is the only change; else ``None``."""
        if self.scaling.offset.any() or (self.scaling.scale != 1).any():
            return None
        if is_stored(self.array) and self.array.kind == "bfloat16":
            return torch.from_numpy(raw.view(np.int16)).view(torch.bfloat16)
        return torch.from_numpy(raw) if raw.dtype in (np.float32, np.float16, np.uint8) else None

    def scale(self, raw: np.ndarray) -> np.ndarray:
        """Scaled float32 rows of what :meth:`read_raw` read."""
        return self.scaling.apply(self.array.decode(raw) if is_stored(self.array) else raw)

    def _read_sparse(self, rows: slice | np.ndarray) -> np.ndarray:
        taken: Any = self.array[rows].astype(np.float64)  # a copy
        taken.data *= self.scaling.scale if self.scaling.width is None else self.scaling.scale[taken.indices]
        return taken.astype(np.float32).toarray()

    def _stored_rows(self, index: slice | np.ndarray | None) -> slice | np.ndarray:
        """``index`` among these rows, as an index among the rows of ``array``."""
        if index is None:
            index = slice(None)
        elif isinstance(index, np.ndarray):
            if index.dtype.kind not in "iu" or index.ndim != 1:
                raise IndexError(f"rows are read by an integer array [B], not {index.dtype} {index.shape}")
            size = len(self)
            if index.size and not -size <= int(index.min()) <= int(index.max()) < size:
                raise IndexError(f"index {index.min()} to {index.max()} is out of range for {size} rows")
            index = np.where(index < 0, index + size, index).astype(np.intp)
        return index if self.index is None else self.index[index]


def split(rows: Rows, fraction: float, seed: int) -> tuple[Rows, Rows]:
    """Split into (train, validation) at random: disjoint, exhaustive, and the same for the same seed.

    Args:
        rows: what to split; nothing is read.
        fraction: the validation part's share of the rows, in [0, 1); 0 gives an empty validation part.
        seed: of the random choice. Both parts keep the rows' order.

    Raises:
        ValueError: for a fraction outside [0, 1), or one above 0 that would leave a part empty.
    """
    train, validation = split_index(len(rows), fraction, seed, rows.array)
    return rows if not len(validation) else rows.subset(train), rows.subset(validation)


def split_index(
    rows: int, fraction: float, seed: int, array: RowArray | None = None
) -> tuple[RowIndex, RowIndex]:
    """The numbers of the rows of each part of a split, as of :func:`split`.

    Of rows in an ``array`` of files, at most 16384 spans are held out, each of one row where that is enough;
    of rows that can only be read in order, the first ones.
    """
    if not 0 <= fraction < 1:
        raise ValueError(f"fraction must be in [0, 1), not {fraction}")
    held_out = round(rows * fraction)
    if fraction > 0 and not 0 < held_out < rows:
        raise ValueError(f"a fraction of {fraction} of {rows} rows leaves one part empty")
    if array is not None and is_stored(array) and held_out:
        size = held_out if array.is_sequential else math.ceil(held_out / _MOST_SPANS)
        drawn = np.random.default_rng(seed).permutation(rows // size)[: held_out // size]
        low = np.zeros(1, np.int64) if array.is_sequential else np.sort(drawn) * size
        high = low + size
        return Spans(np.append(0, high), np.append(low, rows)), Spans(low, high)
    order = np.random.default_rng(seed).permutation(rows)
    return np.sort(order[held_out:]), np.sort(order[:held_out])


def chosen_window(window_mib: float | None, memory_gib: float | None) -> float:
    """The size of the windows of shards in MiB: as given, else 256, or a third of the memory if less."""
    if window_mib is not None:
        return window_mib
    return min(WINDOW_MIB, 1024 / 3 * memory_gib) if memory_gib else WINDOW_MIB
