"""Named arrays: .npy, .npz, .safetensors and .pt, and SciPy's sparse matrices."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib.format import open_memmap
from safetensors import safe_open

from ....errors import DataError, one_line
from ....optional import require
from ..parts import RawData, RawPart, check_part
from ..tables import Columns
from .files import check_size

X_NAMES = ("x", "data", "images", "features")
Y_NAMES = ("y", "labels", "label", "targets", "target")
_MOST_COLUMNS = 1 << 24


def read_npy(path: Path, columns: Columns) -> RawData:
    """Map one array."""
    # what np.load(mmap_mode="r") calls for .npy, without its fall back to other formats
    return RawData(check_part(path.name, open_memmap(path, mode="r")))


def read_npz(path: Path, columns: Columns) -> RawData:
    """Read named arrays, or one sparse matrix."""
    if not zipfile.is_zipfile(path):
        raise DataError(f"{path.name}: not an .npz archive, or a truncated one")
    with zipfile.ZipFile(path) as archive:
        check_size(path, sum(member.file_size for member in archive.infolist()), "its arrays")
    with np.load(path, allow_pickle=False) as arrays:
        if {"format", "shape", "data"} <= set(arrays.files):
            return RawData(_read_sparse(path, arrays["shape"]))
        if {"indptr", "row", "offsets"} & set(arrays.files):
            raise DataError(f"{path.name}: a sparse matrix without format, shape or data")
        return named_arrays(path.name, arrays.files, arrays.__getitem__, columns)


def _read_sparse(path: Path, shape: np.ndarray) -> RawPart:
    check_sparse_shape(path, shape)
    sparse = require("scipy.sparse", path.name)
    stored = sparse.load_npz(path)
    if stored.format in ("csr", "csc", "bsr"):  # whose indices scipy would follow out of bounds
        stored.check_format(full_check=True)
    return check_part(path.name, stored)


def check_sparse_shape(path: Path, shape: np.ndarray) -> None:
    """Refuse a shape whose row pointers or column ranges would take far more memory than the file."""
    if shape.shape != (2,) or shape.dtype.kind not in "iu" or (shape < 0).any():
        raise DataError(f"{path.name}: a sparse matrix needs a shape of two sizes, not {shape.tolist()}")
    rows, columns = map(int, shape)
    check_size(path, 8 * rows, f"a matrix of {rows} rows")
    if columns > _MOST_COLUMNS:
        raise DataError(f"{path.name}: {columns} columns; at most {_MOST_COLUMNS} can be used")


def read_safetensors(path: Path, columns: Columns) -> RawData:
    """Read named tensors."""
    with safe_open(path, framework="pt") as tensors:
        return named_arrays(path.name, list(tensors.keys()), tensors.get_tensor, columns)


def read_torch(path: Path, columns: Columns) -> RawData:
    """Read a tensor, named tensors, or a pair of rows and labels. Nothing but tensors is unpickled."""
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # of any kind where a file is damaged
        reason = one_line(error).partition(". ")[0]  # and not what torch advises
        raise DataError(f"{path.name}: damaged, or holds more than tensors ({reason})") from error
    if isinstance(loaded, torch.Tensor):
        loaded = {"x": loaded}
    elif isinstance(loaded, list | tuple) and 1 <= len(loaded) <= 2:
        loaded = dict(zip(("x", "y"), loaded, strict=False))
    if not isinstance(loaded, dict) or not all(isinstance(value, torch.Tensor) for value in loaded.values()):
        raise DataError(f"{path.name}: expected a tensor, a pair or a dict of tensors")
    tensors: dict[str, torch.Tensor] = {str(key): value for key, value in loaded.items()}
    return named_arrays(path.name, list(tensors), tensors.__getitem__, columns)


def named_arrays(name: str, keys: Collection[str], get: Callable[[str], Any], columns: Columns) -> RawData:
    """The parts among named arrays.

    The rows are named x, X, data, images or features, alone or with train and test as in x_train, train_x and
    test_images; their labels y, labels or targets in the same way. A single array of any name holds rows.

    Raises:
        DataError: no rows, or several arrays that could be them.
    """

    def find(names: tuple[str, ...], forms: tuple[str, ...]) -> str | None:
        wanted = {form.format(stem) for stem in names for form in forms}
        found = [key for key in keys if key.lower() in wanted]
        if len(found) > 1:
            raise DataError(f"{name}: {', '.join(found)} could all be {forms[0].format(names[0])}; keep one")
        return found[0] if found else None

    train, test = ("{}", "{}_train", "train_{}"), ("{}_test", "test_{}")
    x, y = find(X_NAMES, train), find(Y_NAMES, train)
    x_test, y_test = find(X_NAMES, test), find(Y_NAMES, test)
    if x is None and len(keys) == 1:
        (x,) = keys
        y = None
    if x is None:
        found = ", ".join(keys) or "nothing"
        raise DataError(f"{name}: needs x (and optionally y, x_test, y_test) or a single array; has {found}")
    if y_test is not None and x_test is None:
        raise DataError(f"{name}: has {y_test} without x_test")
    if columns.label:
        if not columns.wants_labels:
            y = y_test = None
        elif (given := " ".join(columns.label)) in keys:
            y = given
        else:
            raise DataError(f"{name}: label: no array {given!r} among {', '.join(keys)}")

    def part(title: str, x: str, y: str | None) -> RawPart:
        labels = None if y is None else get(y)
        return check_part(title, get(x), labels, label_source="" if y is None else repr(y))

    held_out = None if x_test is None else part(f"{name}: {x_test}", x_test, y_test)
    return RawData(part(name, x, y), held_out)
