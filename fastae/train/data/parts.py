"""Rows as they were given: any array-like, checked, before it is scaled."""

from __future__ import annotations

import reprlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np
import torch

from ...errors import DataError, one_line
from ...optional import require
from .labels import check_labels
from .spans import RowIndex

if TYPE_CHECKING:
    from typing_extensions import TypeIs

# an eighth of float32's range: the difference of any two accepted values has a normal float32 reciprocal
LARGEST = np.finfo(np.float32).max / 8
_BLOCK_ELEMENTS = 1 << 22


class CsrMatrix(Protocol):
    """The part of ``scipy.sparse.csr_array`` that is used; SciPy is imported only where rows are sparse."""

    shape: tuple[int, int]
    dtype: np.dtype
    data: np.ndarray
    indices: np.ndarray
    indptr: np.ndarray

    def __getitem__(self, rows: slice | np.ndarray, /) -> Any: ...
    def astype(self, dtype: Any, /) -> Any: ...
    def toarray(self) -> np.ndarray: ...
    def nanmin(self, axis: int) -> Any: ...
    def nanmax(self, axis: int) -> Any: ...


class StoredRows(Protocol):
    """Rows [N, D] in files, of which any are read at any time.

    Attributes:
        shape: (N, D).
        dtype: of the values that indexing returns.
        kind: of the stored values, as "bfloat16".
        is_checked: whether all values are known to be finite.
        ranges: the least and the largest value of each column, float64 [D] each, where they are known.
        is_sequential: whether reading backwards starts again at the first row.
    """

    shape: tuple[int, int]
    dtype: np.dtype
    kind: str
    is_checked: bool
    ranges: tuple[np.ndarray, np.ndarray] | None
    is_sequential: bool

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice | np.ndarray, /) -> np.ndarray:
        """A new array of the rows at a slice or at numbers in any order."""
        ...

    def raw(self, rows: int) -> np.ndarray:
        """An empty array [rows, D] of the stored dtype."""
        ...

    def read_into(self, rows: np.ndarray, out: np.ndarray) -> None:
        """Read rows, by rising numbers, into an array that :meth:`raw` made."""
        ...

    def decode(self, raw: np.ndarray) -> np.ndarray:
        """Stored values in ``dtype``."""
        ...

    def edges(self, size: int) -> np.ndarray:
        """The first row of each block of about ``size`` rows that is best read at once, and N; int64."""
        ...

    def fingerprint(self) -> str: ...

    def difference(self, fingerprint: str) -> str:
        """Which part is not as it was when the fingerprint was taken, in words; "" where all are."""
        ...


RowArray: TypeAlias = np.ndarray | CsrMatrix | StoredRows


def is_sparse(x: RowArray) -> TypeIs[CsrMatrix]:
    """Whether rows are a CSR matrix."""
    return hasattr(x, "indptr")


def is_stored(x: Any) -> TypeIs[StoredRows]:
    """Whether rows are in files that are read on demand."""
    return hasattr(x, "read_into")


@dataclass(frozen=True, eq=False)
class RawPart:
    """Checked, unscaled rows.

    Attributes:
        name: of the file or data set; begins the messages of errors.
        x: [N, D], an array, a memory map or a CSR matrix.
        labels: [N], as :func:`~.labels.check_labels` returns them, or None.
        feature_shape: the shape of one row before flattening, as (28, 28).
        feature_names: one name per column, where there are names.
        label_source: the column, array or file that the labels were taken from.
        notes: what was left out in reading, for the data set's description.
        undefined: the number of values that are NaN, and the row and column of the first; None without any.
    """

    name: str
    x: RowArray
    labels: np.ndarray | None
    feature_shape: tuple[int, ...]
    feature_names: tuple[str, ...] | None = None
    label_source: str = ""
    notes: tuple[str, ...] = ()
    undefined: tuple[int, int, int] | None = None

    def check_defined(self) -> None:
        """Raises ``DataError`` if some values are missing."""
        if self.undefined is not None:
            raise _missing_error(self.name, *self.undefined)

    @property
    def width(self) -> int:
        """D, the number of columns."""
        return self.x.shape[1]


@dataclass(frozen=True, eq=False)
class RawData:
    """The parts that one file or folder holds."""

    train: RawPart
    test: RawPart | None = None


def check_part(
    name: str,
    x: Any,
    labels: Any = None,
    *,
    feature_names: tuple[str, ...] | None = None,
    label_source: str = "",
    notes: tuple[str, ...] = (),
) -> RawPart:
    """Make a part of x [N, ...] and labels [N].

    Args:
        name: begins the messages of errors.
        x: an array, a tensor, a data frame of numbers, a list, or a SciPy sparse matrix of any format. All
            dimensions after the first become one.
        labels: of any kind that :func:`~.labels.check_labels` takes.
        feature_names, label_source, notes: see :class:`RawPart`.

    Raises:
        DataError: for what cannot be trained on.
    """
    if feature_names is None:
        feature_names = _column_names(x)
    x = as_array(name, x)
    if x.dtype.kind not in "buif":
        raise DataError(f"{name}: dtype {x.dtype} is not real numbers")
    if len(x.shape) < 2:
        raise DataError(f"{name}: shape {x.shape} has no rows and columns; 2 or more dimensions are needed")
    if 0 in x.shape:
        raise DataError(f"{name}: no {'rows' if x.shape[0] == 0 else 'columns'} (shape {x.shape})")
    feature_shape = tuple(int(size) for size in x.shape[1:])
    if len(x.shape) > 2:
        # flattening a map in Fortran order reads all of it: the result is a plain array, not a map
        x = x.reshape(len(x), -1) if x.flags.c_contiguous else np.asarray(x).reshape(len(x), -1)
    undefined = _undefined(name, x)
    if labels is not None:
        labels = check_labels(name, as_array(f"{name}: labels", labels), x.shape[0])
    return RawPart(name, x, labels, feature_shape, feature_names, label_source, notes, undefined)


def check_unmasked(name: str, values: Any) -> None:
    """Refuse masked values of an array, or of the arrays in a list: NumPy would read what lies below them."""
    parts = values if isinstance(values, list | tuple) else (values,)
    if masked := sum(int(np.ma.getmaskarray(part).sum()) for part in parts if np.ma.is_masked(part)):
        raise DataError(f"{name}: {masked} values are masked; fill them in or leave them out")


def as_array(name: str, values: Any) -> Any:
    """``values`` as a NumPy array (a map stays one) or, where they are sparse, a CSR matrix.

    Raises:
        DataError: for what NumPy cannot make an array of, and for masked values.
    """
    check_unmasked(name, values)
    if isinstance(values, np.ndarray) or is_stored(values):
        return values
    if hasattr(values, "tocsr") and hasattr(values, "nnz"):
        if len(values.shape) != 2:
            raise DataError(f"{name}: sparse rows of shape {values.shape}; 2 dimensions are needed")
        return require("scipy.sparse", name).csr_array(values)
    if hasattr(values, "columns") and getattr(values, "ndim", 2) == 2:
        columns = list(_columns(values))
        if columns and len({column.dtype for _, column in columns}) > 1:
            return stack_columns(name, [_numbers(name, *column) for column in columns], len(values))
    try:
        if isinstance(values, torch.Tensor):
            values = values.detach().cpu()
            return (values.float() if values.dtype == torch.bfloat16 else values).numpy()
        return np.asarray(values)
    except Exception as error:  # foreign types raise anything
        kind = type(values).__name__
        raise DataError(f"{name}: expected an array of numbers, got {kind} ({one_line(error)})") from error


def blocks(x: np.ndarray | StoredRows, index: RowIndex | None = None) -> Iterator[np.ndarray]:
    """The rows of x [N, D], or those at ``index``, in blocks that bound what of a memory map is in memory."""
    step = max(1, _BLOCK_ELEMENTS // x.shape[1])
    for low in range(0, len(x) if index is None else len(index), step):
        place = slice(low, low + step)
        yield x[place] if index is None else x[index[place]]


def stack_columns(name: str, columns: list[np.ndarray], rows: int) -> np.ndarray:
    """Columns [N] as a table [N, D], in float64 where they are of several dtypes.

    Raises:
        DataError: for integers that float64 would not keep apart.
    """
    if not columns:
        raise DataError(f"{name}: no columns of features")
    if len({column.dtype for column in columns}) == 1:
        return np.stack(columns, axis=1)
    for number, column in enumerate(columns):
        if column.dtype.itemsize == 8 and column.dtype.kind in "iu" and _is_beyond_float64(column):
            raise DataError(
                f"{name}: integers of column {number} would be rounded beside columns of other types;"
                " subtract a constant from them or leave them out"
            )
    table = np.empty((rows, len(columns)))
    for number, column in enumerate(columns):
        table[:, number] = column
    return table


def _is_beyond_float64(column: np.ndarray) -> bool:
    exact = int(column.min(initial=0)) >= -(2**53) and int(column.max(initial=0)) <= 2**53
    return not exact and len(np.unique(column)) > len(np.unique(column.astype(np.float64)))


def select_columns(name: str, x: Any, names: tuple[str, ...] | None) -> Any:
    """The columns of a data frame by name, in the order of ``names``; what has no names as it is.

    Raises:
        DataError: a column is missing.
    """
    given = None if names is None or len(set(names)) < len(names) else _column_names(x)
    if given is None or names is None or given == names:
        return x
    if missing := [column for column in names if column not in given]:
        found = reprlib.repr(list(given))
        raise DataError(f"{name}: expected a column {missing[0]!r}, got {found}")
    columns = dict(zip(given, x.columns, strict=True))
    return x[[columns[column] for column in names]]


def _column_names(x: Any) -> tuple[str, ...] | None:
    """The names of a data frame's columns; None for other values, and for names that are mere numbers."""
    columns = getattr(x, "columns", None)
    if columns is None or all(isinstance(column, int | np.integer) for column in columns):
        return None
    return tuple(map(str, columns))


def _columns(frame: Any) -> Iterator[tuple[str, np.ndarray]]:
    """The columns of a pandas or polars frame, of which not all have one dtype."""
    series = (frame.iloc[:, i] for i in range(frame.shape[1])) if hasattr(frame, "iloc") else iter(frame)
    for name, column in zip(frame.columns, series, strict=True):
        yield str(name), np.asarray(column)


def _numbers(name: str, column: str, values: np.ndarray) -> np.ndarray:
    if values.dtype.kind in "biuf":
        return values
    for row, value in enumerate(values):
        if not isinstance(value, int | float | np.number):
            raise DataError(
                f"{name}: row {row} of column {column!r} is no number, but {one_line(repr(value))[:60]}"
            )
    return values.astype(np.float64)


def check_finite(name: str, x: RowArray, missing: bool = False) -> None:
    """Raise ``DataError`` for infinite and too large values, and for NaN unless it is ``missing``."""
    found = _undefined(name, x)
    if found is not None and not missing:
        raise _missing_error(name, *found)


def _missing_error(name: str, count: int, row: int, column: int) -> DataError:
    return DataError(f"{_value_error(name, count, row, column)}; with missing, NaN is left out")


def _undefined(name: str, x: RowArray) -> tuple[int, int, int] | None:
    """The number of NaN and the place of the first, or ``None``.

    Raises:
        DataError: for infinite and far too large values.
    """
    if x.dtype.kind != "f" or (is_stored(x) and x.is_checked):
        return None
    count, row, column, start, missing = 0, 0, 0, 0, 0
    for block in blocks(x.data[:, None] if is_sparse(x) else x):
        bad = ~(np.abs(block) <= block.dtype.type(min(LARGEST, np.finfo(block.dtype).max)))
        if bad.any():
            if not count:
                row, column = (int(place) for place in np.argwhere(bad)[0] + (start, 0))
            count += int(bad.sum())
            missing += int(np.isnan(block).sum())
        start += len(block)
    if not count:
        return None
    if is_sparse(x):  # the row found is a position among the stored values
        row, column = int(np.searchsorted(x.indptr, row, side="right")) - 1, int(x.indices[row])
    if missing < count:
        raise _value_error(name, count, row, column)
    return count, row, column


def _value_error(name: str, count: int, row: int, column: int) -> DataError:
    return DataError(
        f"{name}: {count} value(s) NaN, infinite or beyond {LARGEST:.0e},"
        f" the first in row {row}, column {column} (counted from 0)"
    )
