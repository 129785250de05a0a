"""Scaling of features: fitted and applied in float64, and rounded to float32 once, at the end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np

from ...errors import DataError
from .parts import RawPart, RowArray, blocks, is_sparse, is_stored
from .spans import RowIndex

Scaling: TypeAlias = Literal["auto", "none", "unit", "minmax", "standard"]

_BLOCK_ELEMENTS = 1 << 16  # of float64, which stay in the cache
_SAMPLE_ROWS, _SAMPLE_ELEMENTS = 1024, 1 << 22
_ROUNDING = 64 * np.finfo(np.float64).eps  # a smaller relative spread is that of sums, not of data
_FLAT = 0.1  # a column with less of the whole range would be flattened by scaling all columns alike


@dataclass(frozen=True, eq=False)
class AffineScaling:
    """y = (x - base - offset) * scale, computed in float64 whatever the dtype of x.

    Attributes:
        name: what was fitted: none, pixel (x / 255), maxabs (x / max |x|), unit, minmax or standard.
        offset: float64, of shape () for all columns alike or [D].
        scale: float64, of the same shape, positive.
        base: int64 or uint64, of the same shape, where integers are beyond what float64 holds: subtracted
            from integers exactly, before they become floats. None for 0.

    Raises:
        ValueError: for other shapes, values that are not finite, a scale that is not positive, or a base that
            is not of integers.
    """

    name: str
    offset: np.ndarray
    scale: np.ndarray
    base: np.ndarray | None = None

    def __post_init__(self) -> None:
        offset, scale = (np.array(value, dtype=np.float64) for value in (self.offset, self.scale))
        if offset.shape != scale.shape or offset.ndim > 1:
            raise ValueError(f"offset {offset.shape} and scale {scale.shape} must have one shape, () or [D]")
        if not (np.isfinite(offset).all() and np.isfinite(scale).all() and (scale > 0).all()):
            raise ValueError("offset and scale must be finite, and scale positive")
        if self.base is not None:
            base = np.array(self.base)
            if base.dtype.kind not in "iu" or base.shape != scale.shape:
                raise ValueError(f"base must be 64-bit integers {scale.shape}, got {base.dtype} {base.shape}")
            object.__setattr__(self, "base", base)
        object.__setattr__(self, "offset", offset)
        object.__setattr__(self, "scale", scale)

    @property
    def width(self) -> int | None:
        """The number of columns it was fitted to, or None where all are scaled alike."""
        return len(self.scale) if self.scale.ndim else None

    def apply(self, x: np.ndarray) -> np.ndarray:
        """Scale x [..., D] of any real dtype into a new float32 array."""
        x = np.asarray(x)
        exact = self.base is None and not self.offset.any()
        if exact and (x.dtype.itemsize <= 2 or (self.scale == 1).all()):
            y = x.astype(np.float32, order="C", subok=False)  # exact, or as rounded as the result
            return y if (self.scale == 1).all() else np.multiply(y, self.scale.astype(np.float32), out=y)
        y = np.empty(x.shape, np.float32)
        step = max(1, _BLOCK_ELEMENTS // max(1, x[:1].size)) if x.ndim > 1 else max(1, x.size)
        for low in range(0, len(x) if x.ndim else 1, step):
            place = slice(low, low + step) if x.ndim else ()
            if self.base is None:
                y[place] = np.subtract(x[place], self.offset, dtype=np.float64) * self.scale
            else:
                y[place] = (_difference(x[place], self.base) - self.offset) * self.scale
        return y

    def inverse(self, y: np.ndarray) -> np.ndarray:
        """Undo :meth:`apply` for y [..., D], into a new float64 array."""
        shifted = np.asarray(y, dtype=np.float64) / self.scale + self.offset
        return shifted if self.base is None else shifted + self.base

    def to_dict(self) -> dict[str, Any]:
        """The scaling as what JSON can hold, exactly."""
        values = {"name": self.name, "offset": self.offset.tolist(), "scale": self.scale.tolist()}
        return values if self.base is None else {**values, "base": self.base.tolist()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> AffineScaling:
        """The inverse of :meth:`to_dict`; offset and scale may also be arrays or CPU tensors."""
        base = values.get("base")
        offset, scale = np.asarray(values["offset"]), np.asarray(values["scale"])
        return cls(str(values["name"]), offset, scale, None if base is None else np.asarray(base))


def _difference(x: np.ndarray, base: np.ndarray) -> np.ndarray:
    """x - base in float64; of integers without rounding them first."""
    rounded = np.subtract(x, base, dtype=np.float64)
    if x.dtype.kind not in "iu" or x.dtype.itemsize < 8:
        return rounded
    with np.errstate(over="ignore"):  # modulo 2^64
        exact = (x.astype(np.uint64) - base.astype(np.uint64)).view(np.int64)
    return np.where(np.abs(rounded) < 2.0**62, exact, rounded)


def fit_scaling(part: RawPart, scaling: Scaling, index: RowIndex | None = None) -> AffineScaling:
    """Fit a scaling to a part, or to its rows at ``index``.

    Raises:
        DataError: for sparse rows that would need an offset, and where half of the different values of a
            column would be one value in float32.
    """
    x = part.x
    if is_sparse(x) and index is not None:
        x, index = x[index[:]], None
    if scaling == "auto" and x.dtype == np.uint8 and not is_sparse(x):
        return AffineScaling("pixel", np.zeros(()), np.ones(()) / 255)
    sample = _sample(x, index)
    if scaling == "standard":
        fitted = _fit_standard(part, x, index)
    elif scaling == "none":
        fitted = _identity()
    else:
        fitted = _fit_range(part, scaling, *_column_ranges(x, index))
        if scaling == "auto" and not is_sparse(x) and _lost(sample, fitted) is not None:
            fitted = _fit_range(part, "minmax", *_column_ranges(x, index))
    if (lost := _lost(sample, fitted)) is not None:
        column, kept, values = lost
        way_out = "" if fitted.name in ("minmax", "standard") else "use minmax or standard, or "
        name = "" if part.feature_names is None else f" ({part.feature_names[column]})"
        raise DataError(
            f"{part.name}: {values} different values of column {column}{name} would be {kept} in float32"
            f" with {fitted.name!r} scaling; {way_out}subtract a constant from the column"
        )
    check_offset(part, fitted)
    return fitted


def check_offset(part: RawPart, scaling: AffineScaling) -> None:
    """Raises ``DataError`` for sparse rows and a scaling with an offset."""
    if is_sparse(part.x) and (scaling.offset.any() or scaling.base is not None):
        raise _offset_error(part, scaling.name)


def _offset_error(part: RawPart, scaling: str) -> DataError:
    return DataError(
        f"{part.name}: {scaling!r} scaling needs an offset, which sparse rows cannot have; use auto or none"
    )


def _identity() -> AffineScaling:
    return AffineScaling("none", np.zeros(()), np.ones(()))


def _check_known(part: RawPart, known: np.ndarray) -> None:
    """Refuse columns [D] without a value that is known."""
    if not known.all():
        raise DataError(f"{part.name}: all values of column {int(np.argmin(known))} are missing; drop it")


def _sum_known(values: np.ndarray) -> np.ndarray:
    """The sums over rows [D] of values [N, D], of which NaN is left out."""
    total = values.sum(axis=0)
    return np.nansum(values, axis=0) if np.isnan(total).any() else total


def _fit_range(part: RawPart, scaling: Scaling, low: np.ndarray, high: np.ndarray) -> AffineScaling:
    """Fit to the range of each column: low and high [D], float64, or integers that float64 would round."""
    _check_known(part, low == low)
    if low.dtype.kind in "iu":
        span, least = _difference(high, low), low.min()
        shifted = _difference(low, least)
        if scaling == "minmax" or (scaling == "auto" and _are_unlike(shifted, shifted + span)):
            return AffineScaling("minmax", np.zeros(span.shape), _reciprocal(span, 0.0), low)
        return AffineScaling("unit", np.zeros(()), _reciprocal(_difference(high.max(), least), 0.0), least)
    least, largest = low.min(), high.max()
    if scaling == "auto" and is_sparse(part.x):
        magnitude = np.maximum(-low, high)
        if not _are_unlike(np.zeros_like(magnitude), magnitude):
            magnitude = magnitude.max()
        return AffineScaling("maxabs", np.zeros(magnitude.shape), _reciprocal(magnitude, magnitude))
    if scaling == "auto" and least >= 0 and largest <= 1:
        return _identity()
    is_table = len(part.feature_shape) == 1
    rounded = float(part.x.dtype.kind == "f")  # integers have no rounding to leave alone
    if scaling == "minmax" or (scaling == "auto" and is_table and _are_unlike(low, high)):
        return AffineScaling("minmax", low, _reciprocal(high - low, rounded * np.maximum(-low, high)))
    return AffineScaling("unit", least, _reciprocal(largest - least, rounded * max(-least, largest)))


def _are_unlike(low: np.ndarray, high: np.ndarray) -> bool:
    """True if one range for all columns would flatten some of them.

    Pixels are alike: they share their least value, and only few of them (those at the borders) vary little.
    """
    span = high - low
    varies = span > 0
    if not varies.any():
        return False
    flat = span[varies] < _FLAT * (high.max() - low.min())
    share_least = float((low[varies] == low.min()).mean())
    return bool(flat.any()) and not (share_least >= 0.75 and flat.mean() <= 0.25)


def _fit_standard(part: RawPart, x: RowArray, index: RowIndex | None) -> AffineScaling:
    if is_sparse(x):
        raise _offset_error(part, "standard")
    # relative to the first row, so that the deviation of a constant column is exactly 0
    first = (x[:1] if index is None else x[index[:1]])[0]
    total, known = np.zeros(x.shape[1]), len(x) if index is None else len(index)
    if part.undefined is not None:
        first = np.nan_to_num(first)
        known = np.sum([(~np.isnan(block)).sum(axis=0) for block in blocks(x, index)], axis=0)
        _check_known(part, known > 0)
    for block in blocks(x, index):
        total += _sum_known(_difference(block, first))
    mean = total / known
    total, rounded = np.zeros(x.shape[1]), float(x.dtype.kind == "f")
    for block in blocks(x, index):
        total += _sum_known(np.square(_difference(block, first) - mean))
    deviation = np.sqrt(total / known)
    if _is_rounded(first):
        return AffineScaling("standard", mean, _reciprocal(deviation, 0.0), first)
    mean += first
    return AffineScaling("standard", mean, _reciprocal(deviation, rounded * np.abs(mean)))


def _column_ranges(x: RowArray, index: RowIndex | None) -> tuple[np.ndarray, np.ndarray]:
    """The least and the largest value of each column [D]; a sparse column's zeros count.

    They are float64, or integers where float64 would round them.
    """
    if is_sparse(x):
        low, high = x.nanmin(axis=0).toarray(), x.nanmax(axis=0).toarray()
        return low.astype(np.float64).ravel(), high.astype(np.float64).ravel()
    if is_stored(x) and x.ranges is not None and index is None:
        return x.ranges
    low = high = None
    for block in blocks(x, index):
        least, largest = np.fmin.reduce(block, axis=0), np.fmax.reduce(block, axis=0)  # leave NaN out
        low = least if low is None else np.fmin(low, least)
        high = largest if high is None else np.fmax(high, largest)
    assert low is not None and high is not None
    if _is_rounded(low) or _is_rounded(high):
        return low, high
    return low.astype(np.float64), high.astype(np.float64)


def _is_rounded(values: np.ndarray) -> bool:
    """True for integers of which float64 would round some."""
    if values.dtype.kind not in "iu" or values.dtype.itemsize < 8:
        return False
    return bool((values > 2**53).any() or (values < -(2**53)).any())


def _reciprocal(span: Any, magnitude: Any) -> np.ndarray:
    """1 / span, and 1 where the span is 0, too small for a reciprocal, or that of rounding."""
    varies = (span >= np.finfo(np.float64).tiny) & (span > _ROUNDING * np.abs(magnitude))
    return 1 / np.where(varies, span, 1.0)


# --- values that float32 would not keep apart --------------------------------------------------------------


def _sample(x: RowArray, index: RowIndex | None) -> np.ndarray | None:
    """Rows evenly spread over x in its own dtype; None where float32 holds every value of that dtype."""
    if x.dtype.itemsize <= 2:
        return None
    rows = x.shape[0] if index is None else len(index)
    number = min(rows, max(2, min(_SAMPLE_ROWS, _SAMPLE_ELEMENTS // x.shape[1])))
    places = np.linspace(0, rows - 1, number).astype(np.int64)
    taken: Any = x[places if index is None else index[places]]
    return taken.toarray() if is_sparse(x) else np.asarray(taken)


def _lost(sample: np.ndarray | None, scaling: AffineScaling) -> tuple[int, int, int] | None:
    """The first column that loses half of its different values: its number, those kept, and those stored."""
    if sample is None:
        return None
    if sample.dtype.kind == "f":
        sample = np.where(np.isnan(sample), np.fmin.reduce(sample, axis=0), sample)
    stored, kept = _count_different(sample), _count_different(scaling.apply(sample))
    lost = (2 * kept <= stored) & (stored > 1)
    if sample.dtype.kind == "f":
        low, high = sample.min(axis=0), sample.max(axis=0)
        lost &= high - low > _ROUNDING * np.maximum(np.abs(low), np.abs(high))
    if not lost.any():
        return None
    column = int(np.argmax(lost))
    return column, int(kept[column]), int(stored[column])


def _count_different(rows: np.ndarray) -> np.ndarray:
    """The number of different values of each column of rows [N, D]."""
    ordered = np.sort(rows, axis=0)
    return 1 + np.count_nonzero(ordered[1:] != ordered[:-1], axis=0)
