"""IDX arrays, as of MNIST: single files, or a folder of four."""

from __future__ import annotations

import math
import re
import struct
from pathlib import Path

import numpy as np

from ....errors import DataError
from ..parts import RawData, check_part
from ..tables import Columns
from .files import open_binary, reading

IDX_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
IDX_NAME = re.compile(r"[-.]idx\d-[a-z]+(\.gz)?$")
_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def read_idx_file(path: Path, columns: Columns) -> RawData:
    """Read one array."""
    return RawData(check_part(path.name, read_idx(path)))


def is_idx_folder(folder: Path) -> bool:
    """True if a folder holds any of the four files."""
    return any((folder / f"{name}{end}").is_file() for name in IDX_FILES for end in ("", ".gz"))


def read_idx_folder(folder: Path, name: str, columns: Columns) -> RawData:
    """Read images and labels of a train and a test part."""
    files = [next((p for p in (folder / f, folder / f"{f}.gz") if p.is_file()), None) for f in IDX_FILES]
    missing = ", ".join(name for name, file in zip(IDX_FILES, files, strict=True) if file is None)
    if missing:
        raise DataError(f"{name}: a folder needs four IDX files (plain or .gz); missing: {missing}")
    arrays: list[tuple[str, np.ndarray]] = []
    for file in filter(None, files):
        with reading(file):
            arrays.append((file.name, read_idx(file)))
    (train, x), (_, y), (test, x_test), (_, y_test) = arrays
    return RawData(check_part(train, x, y), check_part(test, x_test, y_test))


def read_idx(path: Path) -> np.ndarray:
    """The array of one file. Never more than the header announces, and one byte, is read."""
    with open_binary(path) as file:
        magic = file.read(4)
        dtype = _TYPES.get(magic[2]) if len(magic) == 4 and magic[:2] == b"\0\0" else None
        if dtype is None:
            raise DataError(f"{path.name}: not an IDX file: magic number 0x{magic.hex()}")
        rank = magic[3]
        sizes = file.read(4 * rank)
        if len(sizes) < 4 * rank:
            raise DataError(f"{path.name}: truncated IDX header: {4 + len(sizes)} of {4 + 4 * rank} bytes")
        shape = struct.unpack(f">{rank}I", sizes)
        size = math.prod(shape) * np.dtype(dtype).itemsize
        content = _read_at_most(file, size + 1)
    if len(content) != size:
        start, more = 4 + 4 * rank, "or more " if len(content) > size else ""
        raise DataError(
            f"{path.name}: {start + len(content)} {more}bytes, where IDX shape {shape} needs {start + size}"
        )
    return np.frombuffer(content, dtype).reshape(shape)


def _read_at_most(file, size: int) -> bytearray:
    """Up to ``size`` bytes; a header that lies allocates nothing."""
    content = bytearray()
    while len(content) < size and (block := file.read(min(size - len(content), 1 << 24))):
        content += block
    return content
