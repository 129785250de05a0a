"""File formats: what is on disk becomes raw, checked rows. Pickled objects are never loaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from ....errors import DataError, one_line
from ..parts import RawData
from ..tables import Columns, parsed_labels
from .arrays import read_npy, read_npz, read_safetensors, read_torch
from .columnar import read_feather, read_parquet
from .files import reading
from .hdf5 import read_hdf5
from .idx import IDX_NAME, is_idx_folder, read_idx, read_idx_file, read_idx_folder
from .images import is_image_folder, read_image_folder
from .shards import is_listed_folder, is_shard_folder, read_shard_folder
from .text import read_label_text, read_text

_READERS: dict[str, Callable[[Path, Columns], RawData]] = {
    ".npy": read_npy,
    ".npz": read_npz,
    ".safetensors": read_safetensors,
    ".pt": read_torch,
    ".pth": read_torch,
    ".csv": read_text,
    ".tsv": read_text,
    ".txt": read_text,
    ".csv.gz": read_text,
    ".tsv.gz": read_text,
    ".txt.gz": read_text,
    ".parquet": read_parquet,
    ".feather": read_feather,
    ".h5": read_hdf5,
    ".hdf5": read_hdf5,
    ".h5ad": read_hdf5,
}


def read_source(path: Path, columns: Columns | None = None) -> RawData:
    """Read the file or folder at ``path``, by its extension.

    Raises:
        DataError: whatever is wrong with it, in one line that begins with its name.
    """
    columns = columns or Columns()
    name = file_name(path)
    try:
        is_folder, exists = path.is_dir(), path.exists()
    except (OSError, ValueError) as error:  # a name that is too long, or holds what no name can
        reason = getattr(error, "strerror", None) or one_line(error)
        raise DataError(f"{name}: cannot be read: {reason}") from error
    if is_folder:
        return _read_folder(path, name, columns)
    if not exists:
        raise DataError(f"{name}: no such file or folder: {path}")
    reader = read_idx_file if IDX_NAME.search(path.name) else _READERS.get(_suffix(path))
    if reader is None:
        known = ", ".join(_READERS)
        raise DataError(
            f"{name}: unknown extension {path.suffix.lower()!r};"
            f" known: {known}, *-idx3-ubyte, *-idx3-ubyte.gz"
        )
    _check_options(name, reader, columns)
    with reading(path):
        return reader(path, columns)


def read_labels(path: Path, rows: int) -> np.ndarray:
    """Read the labels of ``rows`` rows from a file of their own: .npy, .npz, IDX, or text of one column.

    Raises:
        DataError: for a file that cannot be read, in one line that begins with its name.
    """
    with reading(path):
        if IDX_NAME.search(path.name):
            return read_idx(path)
        suffix = _suffix(path)
        if suffix in (".npy", ".npz"):
            loaded = np.load(path, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                return loaded
            with loaded:
                if len(loaded.files) != 1:
                    raise DataError(
                        f"{path.name}: {len(loaded.files)} arrays, where a file of labels has one"
                    )
                return loaded[loaded.files[0]]
        if _READERS.get(suffix) is read_text:
            column = read_label_text(path)
            return parsed_labels(column[1:] if len(column) == rows + 1 else column)
        raise DataError(f"{path.name}: labels are read from .npy, .npz, IDX, .csv, .tsv and .txt")


_LONGEST_NAME = 255  # that file systems allow


def file_name(path: Path) -> str:
    """The last part of a path, also of one that ends in a dot."""
    name = one_line(path.name or path.absolute().name or path)
    return name if len(name) <= _LONGEST_NAME else f"{name[:_LONGEST_NAME]}..."


def _check_options(name: str, reader: object, columns: Columns) -> None:
    """Refuse a choice of columns where there are none."""
    if columns.drop and reader not in _TABLES:
        raise DataError(f"{name}: drop: columns can be left out of tables only")
    if columns.label and columns.wants_labels and reader not in (*_TABLES, *_ARCHIVES):
        raise DataError(f"{name}: label: has no columns to take labels from; give them as a file with labels")


def _read_folder(path: Path, name: str, columns: Columns) -> RawData:
    reader = read_idx_folder
    if not is_idx_folder(path):
        is_images = not is_listed_folder(path) and is_image_folder(path)
        if not is_images and (is_listed_folder(path) or is_shard_folder(path)):
            return read_shard_folder(path, name, columns)
        if is_images:
            reader = read_image_folder
        elif not any(path.iterdir()):
            raise DataError(
                f"{name}: empty folder; expected shards, images, or the four IDX files"
                " (train-images-idx3-ubyte and so on)"
            )
    _check_options(name, reader, columns)
    return reader(path, name, columns)


def _suffix(path: Path) -> str:
    """The extension, and the one before .gz."""
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    return "".join(suffixes) if suffixes[-1:] == [".gz"] else "".join(suffixes[-1:])


_TABLES = (read_text, read_parquet, read_feather, read_hdf5)
_ARCHIVES = (read_npz, read_safetensors, read_torch)
