"""Scaled rows over any storage, read on demand, and how they are split."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from .labels import encode_labels
from .parts import RowArray, blocks
from .scaling import AffineScaling

_WHOLE_BYTES = 1 << 30  # of a memory map that are all hashed
_STRIDED_BLOCKS, _STRIDED_BYTES = 1024, 1 << 16


@dataclass(frozen=True, eq=False, repr=False)
class Rows:
    """Scaled float32 rows [N, D] over an array, a memory map or a CSR matrix, read on demand.

    Attributes:
        array: the stored values, unscaled, in the file's dtype.
        labels: [N] as they were given (text, booleans, int64 or float64), or None.
        scaling: applied to every read.
        index: int [N], the rows of ``array`` that these rows are; None for all.
        classes: [K], the different labels; None where labels are class numbers already, or no classes.
    """

    array: RowArray
    labels: np.ndarray | None
    scaling: AffineScaling
    index: np.ndarray | None = None
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
        return isinstance(self.array, np.memmap)

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
        if not isinstance(self.array, np.ndarray):
            return self._read_sparse(rows)
        if isinstance(rows, np.ndarray) and self.is_mapped:
            order = np.argsort(rows)  # each page of the file is touched once
            read = np.empty((len(rows), self.width), np.float32)
            read[order] = self.scaling.apply(self.array[rows[order]])
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

        for values in (self.scaling.offset, self.scaling.scale, self.index, self.labels, self.classes):
            digest.update(b"none" if values is None else f"{values.dtype} {values.shape}".encode())
            if values is not None:
                add(values)
        if not isinstance(self.array, np.ndarray):
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
        return fingerprint in (self.fingerprint(), self.sample_fingerprint())

    def sample_fingerprint(self) -> str:
        """The fingerprint of the first format: a digest of 64 scaled rows and of the labels."""
        sample = self._stored_rows(np.linspace(0, len(self) - 1, 64).astype(np.int64))
        taken: Any = self.array[sample]
        x = (taken if isinstance(self.array, np.ndarray) else taken.toarray()).astype(np.float32)
        if self.scaling.offset.any():
            x -= self.scaling.offset.astype(np.float32)
        if (self.scaling.scale != 1).any():
            x *= self.scaling.scale.astype(np.float32)
        digest = hashlib.sha256(f"{len(self)} x {self.width}".encode())
        digest.update(x.tobytes())
        if self.labels is not None:
            digest.update(self.labels.tobytes())
        return digest.hexdigest()

    def subset(self, index: slice | np.ndarray) -> Rows:
        """The rows at ``index``, as for :meth:`read`, without reading them."""
        rows = self._stored_rows(index)
        if isinstance(rows, slice):
            rows = np.arange(*rows.indices(len(self)))
        labels = None if self.labels is None else self.labels[index]
        return Rows(self.array, labels, self.scaling, rows, self.classes)

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
    train, validation = split_index(len(rows), fraction, seed)
    return rows if not len(validation) else rows.subset(train), rows.subset(validation)


def split_index(rows: int, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of the rows of each part of a split, as of :func:`split`."""
    if not 0 <= fraction < 1:
        raise ValueError(f"fraction must be in [0, 1), not {fraction}")
    held_out = round(rows * fraction)
    if fraction > 0 and not 0 < held_out < rows:
        raise ValueError(f"a fraction of {fraction} of {rows} rows leaves one part empty")
    order = np.random.default_rng(seed).permutation(rows)
    return np.sort(order[held_out:]), np.sort(order[:held_out])
