"""Placement of labels on a scatter plot: beside the points they name, over no point and no other label."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

_STEP = 3  # pixels between the places that are tried
_NEAR = 14  # pixels around a label within which the points are those that it seems to name
_MAJORITY = 0.6  # of these points, at least, have to be of its class
_PART = 0.05  # of the class, at least, has to be among them


def place_labels(
    points: np.ndarray,
    classes: np.ndarray,
    sizes: Mapping[int, tuple[float, float]],
    extent: tuple[float, float],
    radius: float,
) -> dict[int, tuple[float, float]]:
    """Find a place for each label that has one, greedily, those with the fewest places first.

    A label may be centred wherever its box lies inside the axes, covers no point and no label,
    and has points around it, most of them of its class. It is put where that majority is the clearest.

    Args:
        points: places in pixels from the axes' lower left corner, [N, 2].
        classes: of the points, [N].
        sizes: width and height in pixels of the label of each class to place.
        extent: width and height of the axes, in pixels.
        radius: of a point's marker, in pixels.

    Returns:
        The centre of each label that could be placed, in pixels.
    """
    width, height = (int(np.ceil(side)) for side in extent)
    inside = ((points >= 0.0) & (points < (width, height))).all(1)
    points, classes = points[inside], classes[inside]
    everything = _Counts(points, width, height)
    taken: list[tuple[float, float, float, float]] = []
    candidates: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    for label, (w, h) in sizes.items():
        rows, columns = np.mgrid[0:height:_STEP, 0:width:_STEP].reshape(2, -1)
        free = everything.within(columns, rows, w / 2 + radius, h / 2 + radius) == 0
        free &= (columns >= w / 2) & (columns <= width - w / 2) & (rows >= h / 2) & (rows <= height - h / 2)
        rows, columns = rows[free], columns[free]
        near = (columns, rows, w / 2 + radius + _NEAR, h / 2 + radius + _NEAR)
        members = points[classes == label]
        own = _Counts(members, width, height).within(*near)
        share = own / np.maximum(1, everything.within(*near))
        # of equal majorities that of more points, so that a stray one is not the one that is named
        clear = (own > _PART * len(members)) & (share >= _MAJORITY)
        score = np.where(clear, share * own / (own + 2.0), 0.0)
        order = np.argsort(-score, kind="stable")[: np.count_nonzero(score)]
        candidates[label] = columns[order], rows[order]
    placed: dict[int, tuple[float, float]] = {}
    for label in sorted(candidates, key=lambda label: len(candidates[label][0])):
        columns, rows = candidates[label]
        w, h = sizes[label]
        free = np.ones(len(columns), bool)
        for x, y, other_w, other_h in taken:
            free &= (np.abs(columns - x) >= (w + other_w) / 2) | (np.abs(rows - y) >= (h + other_h) / 2)
        if free.any():
            first = int(free.argmax())
            placed[label] = float(columns[first]), float(rows[first])
            taken.append((*placed[label], w, h))
    return placed


class _Counts:
    """Counts of points [N, 2] in boxes, by a table of sums over all pixels below and left of each."""

    def __init__(self, points: np.ndarray, width: int, height: int) -> None:
        pixels = np.zeros((height + 1, width + 1), np.int64)
        np.add.at(pixels, (points[:, 1].astype(int) + 1, points[:, 0].astype(int) + 1), 1)
        self._sums = pixels.cumsum(0).cumsum(1)
        self._width, self._height = width, height

    def within(self, x: np.ndarray, y: np.ndarray, half_width: float, half_height: float) -> np.ndarray:
        """Number of points in the boxes around centres (x, y), each [K] like them."""
        reach = int(np.ceil(half_width)), int(np.ceil(half_height))
        left, right = (np.clip(x + side, 0, self._width) for side in (-reach[0], reach[0] + 1))
        low, high = (np.clip(y + side, 0, self._height) for side in (-reach[1], reach[1] + 1))
        return (
            self._sums[high, right] - self._sums[low, right] - self._sums[high, left] + self._sums[low, left]
        )
