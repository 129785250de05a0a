"""Inputs of the pictures: checked arrays, rows as images, and evenly spread choices."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from torch import Tensor

Values: TypeAlias = np.ndarray | Tensor | Sequence[Any]
_LEAST_SIDE = 5  # of a square image whose shape was not given
_MOST_PIXELS = 64  # per side; larger images are subsampled


def as_array(name: str, values: Values, ndim: int) -> np.ndarray:
    """``values`` on the host in float64.

    Raises:
        ValueError: naming ``name``, for other than ``ndim`` dimensions, no entries, or NaN and infinities.
    """
    if isinstance(values, Tensor):
        values = values.detach().cpu().double().numpy()
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: expected an array of numbers ({error})") from None
    if array.ndim != ndim or not array.size:
        raise ValueError(
            f"{name}: expected {ndim} dimensions and entries in them, got shape {list(array.shape)}"
        )
    if not np.isfinite(array).all():
        raise ValueError(f"{name}: {np.count_nonzero(~np.isfinite(array))} entries are NaN or infinite")
    return array


def as_curves(name: str, values: Values | Mapping[str, Values]) -> dict[str, np.ndarray]:
    """Named vectors from a mapping, or the one given under an empty name; checked as by :func:`as_array`."""
    named = values if isinstance(values, Mapping) else {"": values}
    if not named:
        raise ValueError(f"{name}: expected at least one curve, got none")
    return {label: as_array(f"{name} {label}".strip(), curve, 1) for label, curve in named.items()}


def as_labels(labels: Values | None, rows: int) -> np.ndarray | None:
    """Integer labels, one per row; ``ValueError`` for another number of them."""
    if labels is None:
        return None
    if isinstance(labels, Tensor):
        labels = labels.detach().cpu().numpy()
    labels = np.asarray(labels)
    if labels.shape != (rows,) or labels.dtype.kind not in "biu":
        raise ValueError(
            f"labels: expected {rows} whole numbers, got shape {list(labels.shape)}, {labels.dtype}"
        )
    return labels.astype(np.int64)


def as_names(name: str, names: Sequence[str] | None, labels: np.ndarray | None) -> dict[int, str]:
    """Name of each of ``labels``: by number out of ``names``, or the number itself."""
    found = [] if labels is None else np.unique(labels).tolist()
    if names is None:
        return {label: str(label) for label in found}
    if found and not 0 <= found[0] <= found[-1] < len(names):
        given = f"{found[0]} to {found[-1]}"
        raise ValueError(f"{name}: expected one for each of the labels {given}, got {len(names)}")
    return {label: str(names[label]) for label in found}


def same_shape(name: str, array: np.ndarray, like: np.ndarray, other: str) -> None:
    if array.shape != like.shape:
        raise ValueError(f"{name}: expected shape {list(like.shape)} of {other}, got {list(array.shape)}")


def check_count(name: str, value: int, least: int = 1) -> None:
    if not isinstance(value, int | np.integer) or value < least:
        raise ValueError(f"{name}: must be a whole number >= {least}, got {value!r}")


def extent(values: np.ndarray) -> tuple[float, float]:
    """The least and the largest value, or a range about them where they are equal but for rounding."""
    low, high = float(values.min()), float(values.max())
    magnitude = max(abs(low), abs(high))
    if high - low > 1e-9 * magnitude:
        return low, high
    half = max(0.5, 1e-3 * magnitude)
    return low - half, high + half


def spread(size: int, limit: int) -> np.ndarray:
    """At most ``limit`` indices below ``size``, evenly spread and in order."""
    check_count("limit", limit)
    return np.arange(size) if size <= limit else np.linspace(0, size - 1, limit).round().astype(np.intp)


class ImageShape(NamedTuple):
    """Layout of a row of ``height * width * channels`` values as an image; ``channels`` is 1 or 3."""

    height: int
    width: int
    channels: int = 1
    channels_first: bool = False

    def images(self, rows: np.ndarray, most: int = 400_000) -> np.ndarray:
        """[N, D] as [N, h, w] or [N, h, w, 3] of about ``most`` values: large images are subsampled."""
        if self.channels_first:
            images = np.moveaxis(rows.reshape(-1, self.channels, self.height, self.width), 1, -1)
        else:
            images = rows.reshape(-1, self.height, self.width, self.channels)
        step = math.ceil(max(max(self.height, self.width) / _MOST_PIXELS, math.sqrt(rows.size / most)))
        images = images[:, ::step, ::step]
        return images if self.channels == 3 else images[..., 0]


def image_shape(width: int, shape: Sequence[int] | None = None) -> ImageShape | None:
    """Layout of rows of ``width`` values as images, or ``None`` where they are none.

    Args:
        width: values per row, D.
        shape: shape of one row: (height, width), with 1 or 3 channels first or last, or flat. A flat or
            unknown one counts as an image if D is a square of 5 or more.

    Raises:
        ValueError: ``shape`` does not hold ``width`` values.
    """
    if isinstance(shape, int) or (shape is not None and math.prod(shape) != width):
        given = shape if isinstance(shape, int) else list(shape)
        raise ValueError(f"shape: {given} does not hold the {width} values of a row")
    match tuple(shape or ()):
        case (height, columns) if min(height, columns) > 1:
            return ImageShape(height, columns)
        case (height, columns, (1 | 3) as channels) if min(height, columns) > 1:
            return ImageShape(height, columns, channels)
        case ((1 | 3) as channels, height, columns) if min(height, columns) > 1:
            return ImageShape(height, columns, channels, channels_first=True)
        case () | (_,):
            side = math.isqrt(width)
            return ImageShape(side, side) if side * side == width and side >= _LEAST_SIDE else None
    return None


def montage_size(count: int, height: int, width: int) -> int:
    """Number of tiles per row that makes ``count`` tiles about a square."""
    return max(1, min(count, round(math.sqrt(count * height / width))))


def montage(images: np.ndarray, columns: int) -> np.ndarray:
    """Images [N, h, w] as one with gaps of NaN, ``columns`` per row; [N, h, w, 3] as RGBA with clear gaps."""
    count, height, width = images.shape[:3]
    gap = max(1, round(min(height, width) / 14))
    rows = math.ceil(count / columns)
    if images.ndim == 4:
        images = np.concatenate([images, np.ones_like(images[..., :1])], -1)
    step_y, step_x = height + gap, width + gap
    canvas = np.full(
        (rows * step_y + gap, columns * step_x + gap, *images.shape[3:]), 0.0 if images.ndim == 4 else np.nan
    )
    for number, image in enumerate(images):
        y, x = gap + number // columns * step_y, gap + number % columns * step_x
        canvas[y : y + height, x : x + width] = image
    return canvas
