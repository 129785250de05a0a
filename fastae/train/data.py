"""Training data as rows: data sets by name or path, their scaling, and float32 reads of any rows.

Importing this module needs none of the packages of the ``train`` extra.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import numpy as np

from fastae.errors import DataError
from fastae.optional import require
from fastae.train.sources import (
    IDX_FILES,
    RawData,
    RawPart,
    RowArray,
    check_part,
    float_chunks,
    one_line,
    read_source,
)

Scaling: TypeAlias = Literal["auto", "none", "unit", "minmax", "standard"]


@dataclass(frozen=True, eq=False)
class AffineScaling:
    """y = (x - offset) * scale, in float32.

    Attributes:
        name: what was fitted: none, pixel (x / 255), maxabs (x / max |x|), unit, minmax or standard.
        offset: float32, of shape () for all columns alike or [D].
        scale: float32, of the same shape, positive.

    Raises:
        ValueError: for other shapes, values that are not finite, or a scale that is not positive.
    """

    name: str
    offset: np.ndarray
    scale: np.ndarray

    def __post_init__(self) -> None:
        offset, scale = (np.array(value, dtype=np.float32) for value in (self.offset, self.scale))
        if offset.shape != scale.shape or offset.ndim > 1:
            raise ValueError(f"offset {offset.shape} and scale {scale.shape} must have one shape, () or [D]")
        if not (np.isfinite(offset).all() and np.isfinite(scale).all() and (scale > 0).all()):
            raise ValueError("offset and scale must be finite, and scale positive")
        object.__setattr__(self, "offset", offset)
        object.__setattr__(self, "scale", scale)

    @property
    def width(self) -> int | None:
        """The columns it was fitted to, or None where all are scaled alike."""
        return len(self.scale) if self.scale.ndim else None

    def apply(self, x: np.ndarray) -> np.ndarray:
        """Scale x [..., D] into a new float32 array."""
        return self._apply_in_place(np.array(x, dtype=np.float32))

    def inverse(self, y: np.ndarray) -> np.ndarray:
        """Undo `apply` for y [..., D], into a new float32 array."""
        return np.asarray(y, dtype=np.float32) / self.scale + self.offset

    def to_dict(self) -> dict[str, Any]:
        """The scaling as what JSON can hold, exactly."""
        return {"name": self.name, "offset": self.offset.tolist(), "scale": self.scale.tolist()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> AffineScaling:
        """The inverse of `to_dict`; offset and scale may also be arrays or CPU tensors."""
        return cls(str(values["name"]), np.asarray(values["offset"]), np.asarray(values["scale"]))

    def _apply_in_place(self, block: np.ndarray) -> np.ndarray:
        if self.offset.any():  # most data sets need one pass or none
            block -= self.offset
        if (self.scale != 1).any():
            block *= self.scale
        return block


@dataclass(frozen=True, eq=False, repr=False)
class Rows:
    """Scaled float32 rows [N, D] over an array, a memory map or a CSR matrix, read on demand.

    Attributes:
        array: the stored values, unscaled, in the file's dtype.
        labels: int64 [N], or None.
        scaling: applied to every read.
        index: int [N], the rows of `array` that these rows are; None for all.
    """

    array: RowArray
    labels: np.ndarray | None
    scaling: AffineScaling
    index: np.ndarray | None = None

    def __len__(self) -> int:
        return self.array.shape[0] if self.index is None else len(self.index)

    @property
    def width(self) -> int:
        """D, the number of columns."""
        return self.array.shape[1]

    @property
    def is_mapped(self) -> bool:
        """Whether the values stay on disk until they are read."""
        return isinstance(self.array, np.memmap)

    @property
    def nbytes(self) -> int:
        """Bytes that all rows take as dense float32."""
        return len(self) * self.width * np.dtype(np.float32).itemsize

    def read(self, index: slice | np.ndarray | None = None) -> np.ndarray:
        """Read rows into a new float32 array [B, D], C-contiguous, in the order of `index`.

        Args:
            index: a slice, an integer array [B] (negative counts from the end), or None for all rows.

        Raises:
            IndexError: for an index that is out of range, not integers or not one-dimensional.
        """
        rows = self._stored_rows(index)
        if not isinstance(self.array, np.ndarray):
            block = self.array[rows].astype(np.float32).toarray()
        elif isinstance(rows, np.ndarray) and self.is_mapped:
            order = np.argsort(rows)  # each page of the file is touched once
            block = np.empty((len(rows), self.width), np.float32)
            block[order] = self.array[rows[order]]
        else:
            # A slice gives a view of what is stored, an index array a copy already.
            view = isinstance(rows, slice)
            block = self.array[rows].astype(np.float32, order="C", subok=False, copy=view)
        return self.scaling._apply_in_place(block)

    def chunks(self, size: int) -> Iterator[tuple[slice, np.ndarray]]:
        """All rows in order, ``size`` at a time, each with its place."""
        for low in range(0, len(self), size):
            place = slice(low, min(low + size, len(self)))
            yield place, self.read(place)

    def fingerprint(self) -> str:
        """A digest of the number of rows, of 64 of them spread over all, and of the labels."""
        digest = hashlib.sha256(f"{len(self)} x {self.width}".encode())
        digest.update(self.read(np.linspace(0, len(self) - 1, 64).astype(np.int64)).tobytes())
        if self.labels is not None:
            digest.update(self.labels.tobytes())
        return digest.hexdigest()

    def subset(self, index: slice | np.ndarray) -> Rows:
        """The rows at `index`, as for `read`, without reading them."""
        rows = self._stored_rows(index)
        if isinstance(rows, slice):
            rows = np.arange(*rows.indices(len(self)))
        labels = None if self.labels is None else self.labels[index]
        return Rows(self.array, labels, self.scaling, rows)

    def _stored_rows(self, index: slice | np.ndarray | None) -> slice | np.ndarray:
        """`index` among these rows, as an index among the rows of `array`."""
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


@dataclass(frozen=True, eq=False)
class Dataset:
    """A train part and, where there is one, a test part, both scaled by what was fitted on the train part.

    Attributes:
        name: the data set's or the file's name.
        train: rows to train on.
        test: rows to evaluate on, of the same width, or None.
        feature_shape: the shape of one row before flattening, as (28, 28).
        scaling: what `train` and `test` apply.
    """

    name: str
    train: Rows
    test: Rows | None
    feature_shape: tuple[int, ...]
    scaling: AffineScaling

    @property
    def width(self) -> int:
        """D, the number of columns."""
        return self.train.width

    @property
    def num_classes(self) -> int | None:
        """One more than the largest label of both parts, or None without train labels."""
        if self.train.labels is None:
            return None
        parts = [self.train.labels]
        if self.test is not None and self.test.labels is not None:
            parts.append(self.test.labels)
        return 1 + max(int(labels.max()) for labels in parts)


def load_dataset(
    data: str,
    *,
    test: str | None = None,
    scaling: Scaling | AffineScaling = "auto",
    cache_dir: Path | None = None,
) -> Dataset:
    """Load a data set by name or path. Values become float32; dimensions after the first are flattened.

    By name: ``mnist`` and ``fashion-mnist`` (downloaded once, with pinned checksums), and scikit-learn's
    ``digits`` (8x8; 1500 rows to train on and 297 to test, stratified by label with seed 0). By path:

    ================== ===================================================================================
    ``.npy``           one array, memory-mapped
    ``.npz``           x and optionally y, x_test, y_test; or one array of any name; or a SciPy sparse matrix
    ``.safetensors``   the same names; or one tensor of any name
    ``.csv``           numbers; a column named label, y or target gives the labels
    ``*-idx3-ubyte``   one IDX array, plain or ``.gz``
    a folder           the four IDX files under the names that MNIST gave them, plain or ``.gz``
    ================== ===================================================================================

    Scalings, fitted on the train part only (sparse rows take only those that need no offset):

    ================== ===================================================================================
    ``auto``           uint8 divided by 255; sparse rows by their largest magnitude; what lies in [0, 1]
                       left alone; the rest as ``unit``
    ``none``           values as they are
    ``unit``           [0, 1] by the smallest and largest value of all
    ``minmax``         [0, 1] for each column; a constant one becomes 0
    ``standard``       mean 0 and standard deviation 1 for each column; a constant one becomes 0
    ================== ===================================================================================

    Args:
        data: a name, else a path (``./digits`` for a file of that name).
        test: path of the test part, where `data` has none.
        scaling: one of the above, or a scaling that was fitted before.
        cache_dir: where downloads are kept; None for the user's cache folder.

    Raises:
        DataError: for data that cannot be found, read or used, or that `scaling` does not fit.
        ValueError: for an unknown `scaling`.
    """
    _check_scaling(scaling)
    name, raw = _read_data(data, cache_dir)
    held_out = raw.test if test is None else _read_test(test, name, raw)
    return _make_dataset(name, raw.train, held_out, scaling)


def dataset_from_arrays(
    name: str,
    x: np.ndarray,
    labels: np.ndarray | None = None,
    x_test: np.ndarray | None = None,
    labels_test: np.ndarray | None = None,
    *,
    scaling: Scaling | AffineScaling = "auto",
) -> Dataset:
    """A data set from arrays (or CSR matrices) in memory: x [N, ...] and integer labels [N].

    Raises:
        DataError: for arrays that cannot be used, or that `scaling` does not fit; begins with `name`.
        ValueError: for an unknown `scaling`.
    """
    _check_scaling(scaling)
    held_out = None if x_test is None else check_part(f"{name}, test part", x_test, labels_test)
    return _make_dataset(name, check_part(name, x, labels), held_out, scaling)


def _check_scaling(scaling: Scaling | AffineScaling) -> None:
    if isinstance(scaling, str) and scaling not in get_args(Scaling):
        raise ValueError(f"scaling: {scaling!r} is not one of {', '.join(get_args(Scaling))}")


def _make_dataset(
    name: str, train: RawPart, held_out: RawPart | None, scaling: Scaling | AffineScaling
) -> Dataset:
    if held_out is not None and held_out.width != train.width:
        raise DataError(f"{held_out.name}: {held_out.width} columns, where the train part has {train.width}")
    fitted = scaling if isinstance(scaling, AffineScaling) else _fit_scaling(train, scaling)
    return Dataset(
        name,
        _scaled_rows(train, fitted),
        None if held_out is None else _scaled_rows(held_out, fitted),
        train.feature_shape,
        fitted,
    )


def split(rows: Rows, fraction: float, seed: int) -> tuple[Rows, Rows]:
    """Split into (train, validation) at random: disjoint, exhaustive, and the same for the same seed.

    Args:
        rows: what to split; nothing is read.
        fraction: the validation part's share of the rows, in [0, 1); 0 gives an empty validation part.
        seed: of the random choice. Both parts keep the rows' order.

    Raises:
        ValueError: for a fraction outside [0, 1), or one above 0 that would leave a part empty.
    """
    if not 0 <= fraction < 1:
        raise ValueError(f"fraction must be in [0, 1), not {fraction}")
    held_out = round(len(rows) * fraction)
    if fraction > 0 and not 0 < held_out < len(rows):
        raise ValueError(f"a fraction of {fraction} of {len(rows)} rows leaves one part empty")
    if not held_out:
        return rows, rows.subset(slice(0))
    order = np.random.default_rng(seed).permutation(len(rows))
    return rows.subset(np.sort(order[held_out:])), rows.subset(np.sort(order[:held_out]))


class _Download(NamedTuple):
    base_url: str
    md5: tuple[str, ...]  # of the gzipped files, in the order of IDX_FILES
    installed: Path | None = None  # where Debian's package of the data set puts them


_DOWNLOADS = {
    "mnist": _Download(
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        (
            "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "d53e105ee54ea40749a09fcbcd1e9432",
            "9fb629c4189551a2d022fa330f9573f3",
            "ec29112dd5afa0611ce80d1b7f02629c",
        ),
    ),
    "fashion-mnist": _Download(
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        (
            "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "25c81989df183df01b3e8a0aad5dffbe",
            "bef4ecab320f06d8554ea6380940ec79",
            "bb300cfdad3c16e7a12a480ee83cd310",
        ),
        Path("/usr/share/datasets/fashion-mnist"),
    ),
}
_NAMES = ("digits", *_DOWNLOADS)


def _read_data(data: str, cache_dir: Path | None) -> tuple[str, RawData]:
    """The data set's name and its rows."""
    if data == "digits":
        return data, _read_digits()
    if data in _DOWNLOADS:
        return data, read_source(_downloaded(data, cache_dir))
    path = Path(data).expanduser()
    if not path.exists() and not path.suffix and path.name == data:
        close = difflib.get_close_matches(data.lower(), _NAMES, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise DataError(f"{data}: no such data set or file; {hint}known data sets: {', '.join(_NAMES)}")
    return path.resolve().name, read_source(path)


def _read_test(test: str, name: str, raw: RawData) -> RawPart:
    if raw.test is not None:
        raise DataError(f"{name}: has a test part of its own, so none can be given ({test})")
    source = read_source(Path(test).expanduser())
    if source.test is not None:
        raise DataError(
            f"{source.train.name}: has a train and a test part; give a file with one part as the test part"
        )
    return source.train


def _read_digits() -> RawData:
    x, labels = require("sklearn.datasets", "digits").load_digits(return_X_y=True)
    train, test = require("sklearn.model_selection", "digits").train_test_split(
        np.arange(len(x)), test_size=297, stratify=labels, random_state=0
    )
    train, test = (
        check_part("digits", x[rows].reshape(-1, 8, 8), labels[rows])
        for rows in (np.sort(train), np.sort(test))
    )
    return RawData(train, test)


def _downloaded(name: str, cache_dir: Path | None) -> Path:
    """The folder with the four IDX files of a named data set, downloaded where needed."""
    download = _DOWNLOADS[name]
    if download.installed is not None and download.installed.is_dir():
        return download.installed
    pooch = require("pooch", name)
    files = [f"{file}.gz" for file in IDX_FILES]
    folder = (Path(pooch.os_cache("fastae")) if cache_dir is None else cache_dir) / name
    registry = {file: f"md5:{md5}" for file, md5 in zip(files, download.md5, strict=True)}
    fetcher = pooch.create(path=folder, base_url=download.base_url, registry=registry)
    try:
        for file in files:
            fetcher.fetch(file)
    except (OSError, ValueError) as error:  # requests' errors are OSErrors; a wrong checksum is a ValueError
        raise DataError(
            f"{name}: download failed; give the path of a folder with {', '.join(files)}, or use 'digits'"
            f" ({one_line(error)})"
        ) from error
    return folder


def _scaled_rows(part: RawPart, scaling: AffineScaling) -> Rows:
    if scaling.width not in (None, part.width):
        raise DataError(f"{part.name}: {part.width} columns, where the scaling has {scaling.width}")
    if not isinstance(part.x, np.ndarray) and scaling.offset.any():
        raise _offset_error(part, scaling.name)
    return Rows(part.x, part.labels, scaling)


def _offset_error(part: RawPart, scaling: str) -> DataError:
    return DataError(
        f"{part.name}: {scaling!r} scaling needs an offset, which sparse rows cannot have; use auto or none"
    )


def _fit_scaling(part: RawPart, scaling: Scaling) -> AffineScaling:
    x, zero, one = part.x, np.zeros((), np.float32), np.ones((), np.float32)
    if scaling == "none":
        return AffineScaling("none", zero, one)
    if scaling == "standard":
        return _fit_standard(part)
    if scaling == "auto" and isinstance(x, np.ndarray) and x.dtype == np.uint8:
        return AffineScaling("pixel", zero, one / 255)
    low, high = _column_ranges(x)
    if scaling == "minmax":
        return AffineScaling("minmax", low, _reciprocal(high - low))
    low, high = low.min(), high.max()
    if scaling == "auto" and not isinstance(x, np.ndarray):
        return AffineScaling("maxabs", zero, _reciprocal(np.maximum(-low, high)))
    if scaling == "auto" and low >= 0 and high <= 1:
        return AffineScaling("none", zero, one)
    return AffineScaling("unit", low, _reciprocal(high - low))


def _fit_standard(part: RawPart) -> AffineScaling:
    x = part.x
    if not isinstance(x, np.ndarray):
        raise _offset_error(part, "standard")
    # The deviation of a constant column is exactly 0: float64 sums of up to 2**29 equal float32 are exact.
    zeros = np.zeros(x.shape[1])
    mean = sum((chunk.sum(axis=0, dtype=np.float64) for _, chunk in float_chunks(x)), zeros) / len(x)
    variance = sum((np.square(chunk - mean).sum(axis=0) for _, chunk in float_chunks(x)), zeros) / len(x)
    deviation = np.sqrt(variance).astype(np.float32)
    return AffineScaling("standard", mean, _reciprocal(deviation))


def _column_ranges(x: RowArray) -> tuple[np.ndarray, np.ndarray]:
    """The smallest and largest value of each column, float32 [D] each; a sparse column's zeros count."""
    if not isinstance(x, np.ndarray):
        return tuple(extreme.toarray().astype(np.float32) for extreme in (x.min(axis=0), x.max(axis=0)))
    low = np.full(x.shape[1], np.inf, np.float32)
    high = -low
    for _, chunk in float_chunks(x):
        np.minimum(low, chunk.min(axis=0), out=low)
        np.maximum(high, chunk.max(axis=0), out=high)
    return low, high


def _reciprocal(span: np.ndarray) -> np.ndarray:
    """1 / span, and 1 where the span is 0 or so small that float32 cannot hold its reciprocal."""
    one = np.float32(1)
    return one / np.where(span >= np.finfo(np.float32).tiny, span, one)
