"""File formats: what is on disk becomes raw, checked rows. Pickled objects are never loaded."""

from __future__ import annotations

import csv
import gzip
import math
import re
import struct
import zipfile
from array import array
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch
from numpy.lib.format import open_memmap
from safetensors import safe_open

from fastae.errors import DataError
from fastae.optional import require

IDX_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
_IDX_NAME = re.compile(r"[-.]idx\d-[a-z]+(\.gz)?$")
_IDX_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_LABEL_COLUMNS = frozenset({"label", "y", "target"})

# An eighth of float32's range: the difference of any two accepted values has a normal float32 reciprocal.
_LARGEST = np.finfo(np.float32).max / 8
_CHUNK_ELEMENTS = 1 << 22


class CsrMatrix(Protocol):
    """What is used of `scipy.sparse.csr_array`, which is imported only where a file needs it."""

    shape: tuple[int, int]
    dtype: np.dtype
    data: np.ndarray
    indices: np.ndarray
    indptr: np.ndarray

    def __getitem__(self, rows: slice | np.ndarray, /) -> Any: ...
    def min(self, axis: int) -> Any: ...
    def max(self, axis: int) -> Any: ...


RowArray: TypeAlias = np.ndarray | CsrMatrix


@dataclass(frozen=True, eq=False)
class RawPart:
    """Checked, unscaled rows: x [N, D] (array, memory map or CSR), labels [N] int64 or None."""

    name: str
    x: RowArray
    labels: np.ndarray | None
    feature_shape: tuple[int, ...]

    @property
    def width(self) -> int:
        """D, the number of columns."""
        return self.x.shape[1]


@dataclass(frozen=True, eq=False)
class RawData:
    """The parts that one file or folder holds."""

    train: RawPart
    test: RawPart | None = None


def read_source(path: Path) -> RawData:
    """Read the file or folder at `path`, by its extension.

    Raises:
        DataError: whatever is wrong with it, in one line that begins with its name.
    """
    if path.is_dir():
        return _read_idx_folder(path)
    if not path.exists():
        raise DataError(f"{path.name}: no such file or folder: {path}")
    suffix = path.suffix.lower()
    reader = _read_idx_file if _IDX_NAME.search(path.name) else _READERS.get(suffix)
    if reader is None:
        known = ", ".join(_READERS)
        raise DataError(
            f"{path.name}: unknown extension {suffix!r}; known: {known}, *-idx3-ubyte, *-idx3-ubyte.gz"
        )
    with _reading(path):
        return reader(path)


def check_part(name: str, x: Any, labels: np.ndarray | None = None) -> RawPart:
    """Make a part of x [N, ...] (array or CSR) and labels [N]; all dimensions but the first become one.

    Raises:
        DataError: for what cannot be trained on, beginning with `name`.
    """
    if x.dtype.kind not in "buif":
        raise DataError(f"{name}: dtype {x.dtype} is not real numbers")
    if x.ndim < 2:
        raise DataError(f"{name}: shape {x.shape} has no rows and columns; 2 or more dimensions are needed")
    if 0 in x.shape:
        raise DataError(f"{name}: no {'rows' if x.shape[0] == 0 else 'columns'} (shape {x.shape})")
    feature_shape = tuple(int(size) for size in x.shape[1:])
    if x.ndim > 2:
        # Flattening a map in Fortran order reads all of it: the result is a plain array, not a map.
        x = x.reshape(len(x), -1) if x.flags.c_contiguous else np.asarray(x).reshape(len(x), -1)
    _check_finite(name, x)
    return RawPart(
        name, x, None if labels is None else _check_labels(name, labels, x.shape[0]), feature_shape
    )


def float_chunks(x: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Yield x [N, D] as (first row, float32 chunk), so that a memory map is never in memory as a whole."""
    step = max(1, _CHUNK_ELEMENTS // x.shape[1])
    for start in range(0, len(x), step):
        yield start, _to_float32(x[start : start + step])


def one_line(error: Exception) -> str:
    """The message of a foreign error, fit to be part of ours."""
    return " ".join(str(error).split()) or type(error).__name__


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        if path.stat().st_size == 0:
            raise DataError(f"{path.name}: empty file")
        yield
    except DataError:
        raise
    # A damaged file makes zipfile, zlib, numpy's header parser and others raise nearly anything.
    except Exception as error:
        raise DataError(f"{path.name}: cannot be read: {one_line(error)}") from error


def _to_float32(x: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # becomes inf, which _check_finite refuses
        return np.asarray(x, dtype=np.float32)


def _check_finite(name: str, x: RowArray) -> None:
    if x.dtype.kind != "f":
        return
    count, row, column = 0, 0, 0
    for start, chunk in float_chunks(x if isinstance(x, np.ndarray) else x.data[:, None]):
        bad = ~(np.abs(chunk) <= _LARGEST)
        if bad.any():
            if not count:
                row, column = np.argwhere(bad)[0] + (start, 0)
            count += int(bad.sum())
    if not count:
        return
    if not isinstance(x, np.ndarray):  # the row found is a position among the stored values
        row, column = np.searchsorted(x.indptr, row, side="right") - 1, x.indices[row]
    raise DataError(
        f"{name}: {count} value(s) NaN, infinite or beyond {_LARGEST:.0e},"
        f" the first in row {row}, column {column} (counted from 0)"
    )


def _check_labels(name: str, labels: np.ndarray, rows: int) -> np.ndarray:
    if labels.shape != (rows,):
        raise DataError(f"{name}: {rows} rows need labels of shape ({rows},), not {labels.shape}")
    if labels.dtype.kind not in "buif":
        raise DataError(f"{name}: labels of dtype {labels.dtype} are not integers")
    with np.errstate(invalid="ignore"):  # NaN and what int64 cannot hold differ below
        whole = labels.astype(np.int64)
    for wrong, what in ((whole != labels, "not a whole number"), (whole < 0, "negative")):
        if wrong.any():
            row = int(np.argmax(wrong))
            raise DataError(f"{name}: label {labels[row]} of row {row} is {what}")
    return whole


def _read_npy(path: Path) -> RawData:
    # What np.load(mmap_mode="r") calls for .npy, without its fall back to other formats.
    return RawData(check_part(path.name, open_memmap(path, mode="r")))


def _read_npz(path: Path) -> RawData:
    if not zipfile.is_zipfile(path):
        raise DataError(f"{path.name}: not an .npz archive, or a truncated one")
    with np.load(path, allow_pickle=False) as arrays:
        if {"format", "shape", "data"} <= set(arrays.files):
            return RawData(_read_sparse(path))
        return _named_arrays(path, arrays.files, arrays.__getitem__)


def _read_sparse(path: Path) -> RawPart:
    sparse = require("scipy.sparse", path.name)
    stored = sparse.load_npz(path)
    if stored.format in ("csr", "csc", "bsr"):  # whose indices scipy would follow out of bounds
        stored.check_format(full_check=True)
    return check_part(path.name, sparse.csr_array(stored))


def _read_safetensors(path: Path) -> RawData:
    with safe_open(path, framework="pt") as tensors:

        def get(key: str) -> np.ndarray:
            tensor = tensors.get_tensor(key)
            return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()

        return _named_arrays(path, list(tensors.keys()), get)


def _named_arrays(path: Path, keys: Collection[str], get: Callable[[str], np.ndarray]) -> RawData:
    if "x" not in keys:
        if len(keys) == 1:
            return RawData(check_part(path.name, get(*keys)))
        found = ", ".join(keys) or "nothing"
        raise DataError(
            f"{path.name}: needs x (and optionally y, x_test, y_test) or a single array; has {found}"
        )
    if "y_test" in keys and "x_test" not in keys:
        raise DataError(f"{path.name}: has y_test without x_test")

    def part(name: str, x: str, y: str) -> RawPart:
        return check_part(name, get(x), get(y) if y in keys else None)

    test = part(f"{path.name}: x_test", "x_test", "y_test") if "x_test" in keys else None
    return RawData(part(path.name, "x", "y"), test)


def _read_csv(path: Path) -> RawData:
    """Comma-separated numbers.

    The first row is a header if it names a label column or has no number at all, so that a header of column
    numbers with one label column is found and a mistyped cell in a first data row is not taken for a header.
    """
    values, width, label = array("d"), 0, None
    with path.open(newline="", encoding="utf-8-sig") as file:
        lines = csv.reader(file)
        for cells in filter(None, lines):  # blank lines are empty lists
            where = f"{path.name}: line {lines.line_num}"
            if not width:
                width = len(cells)
                labels = [i for i, cell in enumerate(cells) if cell.strip().lower() in _LABEL_COLUMNS]
                if len(labels) > 1:
                    raise DataError(f"{where}: {len(labels)} label columns; at most one can be used")
                if labels or not any(map(_is_number, cells)):
                    label = labels[0] if labels else None
                    continue
            if len(cells) != width:
                raise DataError(f"{where}: {len(cells)} cells, where the first line has {width}")
            try:
                values.extend(map(float, cells))
            except ValueError as error:
                column, cell = next((i, cell) for i, cell in enumerate(cells, 1) if not _is_number(cell))
                raise DataError(f"{where}, column {column}: {cell[:40]!r} is not a number") from error
    table = np.asarray(values).reshape(-1, max(width, 1))
    if label is None:
        return RawData(check_part(path.name, table))
    return RawData(check_part(path.name, np.delete(table, label, axis=1), table[:, label]))


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _read_idx_file(path: Path) -> RawData:
    return RawData(check_part(path.name, _read_idx(path)))


def _read_idx_folder(folder: Path) -> RawData:
    files = [next((p for p in (folder / f, folder / f"{f}.gz") if p.is_file()), None) for f in IDX_FILES]
    missing = ", ".join(name for name, file in zip(IDX_FILES, files, strict=True) if file is None)
    if missing:
        name = folder.resolve().name
        raise DataError(f"{name}: a folder needs four IDX files (plain or .gz); missing: {missing}")
    arrays: list[tuple[str, np.ndarray]] = []
    for file in filter(None, files):
        with _reading(file):
            arrays.append((file.name, _read_idx(file)))
    (train, x), (_, y), (test, x_test), (_, y_test) = arrays
    return RawData(check_part(train, x, y), check_part(test, x_test, y_test))


def _read_idx(path: Path) -> np.ndarray:
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        content = file.read()
    dtype = _IDX_TYPES.get(content[2]) if len(content) >= 4 and content[:2] == b"\0\0" else None
    if dtype is None:
        raise DataError(f"{path.name}: not an IDX file: magic number 0x{content[:4].hex()}")
    rank = content[3]
    start = 4 + 4 * rank
    if len(content) < start:
        raise DataError(f"{path.name}: truncated IDX header: {len(content)} of {start} bytes")
    shape = struct.unpack(f">{rank}I", content[4:start])
    size = start + math.prod(shape) * np.dtype(dtype).itemsize
    if len(content) != size:
        raise DataError(f"{path.name}: {len(content)} bytes, where IDX shape {shape} needs {size}")
    return np.frombuffer(content, dtype, offset=start).reshape(shape)


_READERS: dict[str, Callable[[Path], RawData]] = {
    ".npy": _read_npy,
    ".npz": _read_npz,
    ".csv": _read_csv,
    ".safetensors": _read_safetensors,
}
