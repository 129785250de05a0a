"""Rows of a table: values by feature as dots, and weights over features as strips of colour."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import SubplotSpec
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator

from .arrays import same_shape, spread
from .style import (
    COLOURS,
    GAP,
    INK,
    SIGNED,
    colours,
    columns_of,
    counted,
    figure_width,
    new_figure,
    plain,
    set_heading,
)

Inverse: TypeAlias = Callable[[np.ndarray], np.ndarray]

_MOST_STRIPS = 240  # features of a strip
_NAMED_STRIPS = 3.4  # features per inch, at most, that a strip names
_ALL, _SOME = 16, 12  # features of a row: so many are all drawn, of more only some
_PANELS = 4  # rows
_LINE = 0.2  # inches per feature
_LONGEST = 20  # characters of a feature's name
_CLEAN: dict[str, Any] = {"color": INK, "marker": "o", "fillstyle": "none", "markersize": 5.5}
_CORRUPTED: dict[str, Any] = {"color": COLOURS[1], "marker": "x", "markersize": 4.5}
_RECONSTRUCTED: dict[str, Any] = {"color": COLOURS[0], "marker": "o", "markersize": 4}
_LOOKS = (_CLEAN, _CORRUPTED, _RECONSTRUCTED)


@dataclass(frozen=True)
class Columns:
    """Names of a table's columns, and the way from the values of the model to those of the table."""

    names: Sequence[str] | None = None
    inverse: Inverse | None = None

    def check(self, rows: np.ndarray) -> None:
        """Raise ``ValueError`` unless there is a name for each column of ``rows`` [N, D]."""
        if self.names is not None and len(self.names) != rows.shape[1]:
            raise ValueError(f"names: expected {rows.shape[1]}, one per feature, got {len(self.names)}")
        if self.inverse is not None:
            same_shape("inverse", np.asarray(self.inverse(rows[:1])), rows[:1], "the rows")

    def label(self, number: int) -> str:
        """The whole name of a column."""
        return f"feature {number + 1}" if self.names is None else str(self.names[number])

    def name(self, number: int) -> str:
        """The name of a column as matplotlib takes it, cut off where it is long."""
        name = self.label(number)
        return plain(name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…")

    def own(self, rows: np.ndarray) -> np.ndarray:
        """Rows [N, D] in the table's own units."""
        return rows if self.inverse is None else np.asarray(self.inverse(rows), np.float64)


def features_of(row: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Indices of the features to draw of a row [D]: all, or those furthest from their ``mean`` [D] first."""
    if len(row) <= _ALL:
        return np.arange(len(row))
    return np.argsort(-np.abs(row - mean), kind="stable")[:_SOME]


def rows_figure(
    title: str, named: Mapping[str, np.ndarray], chosen: np.ndarray, columns: Columns, mean: np.ndarray
) -> Figure:
    """A panel per row of ``chosen``, with a dot for each of the ``named`` rows [N, D]."""
    beside = columns_of(len(chosen), 2)
    height = height_of_row(len(mean)) * math.ceil(len(chosen) / beside)
    figure = new_figure(title, 0.7 + height)
    grid = figure.add_gridspec(math.ceil(len(chosen) / beside), beside)
    for place, number in enumerate(chosen):
        axes = figure.add_subplot(grid[divmod(place, beside)])
        set_heading(axes, f"row {number}", 0.5 / beside)
        draw_row(axes, {kind: rows[number] for kind, rows in named.items()}, columns, mean)
    legend_below(figure)
    return figure


def draw_rows(
    figure: Figure,
    place: SubplotSpec,
    named: Mapping[str, np.ndarray],
    heading: str,
    columns: Columns,
    mean: np.ndarray,
) -> None:
    """Panels beside each other, one per row, in a part of a figure."""
    count = len(next(iter(named.values())))
    for number, axes in enumerate(place.subgridspec(1, count).subplots(squeeze=False)[0]):
        draw_row(axes, {kind: rows[number] for kind, rows in named.items()}, columns, mean)
        set_heading(axes, heading if not number else " ", 0.5 / count)  # beside the names, which take half


def draw_row(axes: Axes, named: Mapping[str, np.ndarray], columns: Columns, mean: np.ndarray) -> None:
    """The values of one row [D], its reconstruction beside it, the first and the last of ``named``."""
    first, last = next(iter(named.values())), list(named.values())[-1]
    kept = features_of(first, mean)
    y = np.arange(len(kept))
    axes.hlines(y, first[kept], last[kept], color=GAP, linewidth=2.0, zorder=1)
    looks = _LOOKS if len(named) == 3 else _LOOKS[::2]
    for (kind, row), look in zip(named.items(), looks, strict=True):
        axes.plot(row[kept], y, linestyle="", label=kind, **look)
    axes.set_yticks(y, [columns.name(feature) for feature in kept])
    axes.set_ylim(len(kept) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.margins(x=0.08)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    if columns.inverse is None:
        axes.set_xlabel("value")
    else:
        before, after = columns.own(np.stack([first, last]))
        axes.set_xlabel("scaled value; numbers in own units")
        side = axes.secondary_yaxis("right")
        side.set_yticks(y, [f"{before[n]:.4g} → {after[n]:.4g}" for n in kept])
        side.tick_params(length=0)
        side.spines[:].set_visible(False)
    if len(kept) < len(first):
        axes.set_ylabel(f"{len(kept)} of {len(first)} features,\nfurthest from their mean")


def panels_of(rows: int) -> int:
    """Number of ``rows`` that have a panel."""
    return min(rows, _PANELS)


def height_of_row(width: int) -> float:
    """Inches of a panel for a row of ``width`` features."""
    return max(1.5, 0.9 + _LINE * min(width, _ALL if width <= _ALL else _SOME))


def legend_below(figure: Figure) -> None:
    """One legend for the panels of rows, below them."""
    handles = figure.axes[-1].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=len(handles[0]))


def strips(axes: Axes, rows: np.ndarray, scale: float, columns: Columns, labelled: bool = True) -> AxesImage:
    """Rows [N, D] as strips of colour, one above the other; wide rows subsampled."""
    width = rows.shape[1]
    kept = spread(width, _MOST_STRIPS)
    image = axes.imshow(
        rows[:, kept],
        cmap=colours(SIGNED),
        vmin=-scale,
        vmax=scale,
        aspect="auto",
        interpolation="none",
        extent=(0.5, width + 0.5, len(rows) + 0.5, 0.5),
    )
    axes.grid(False)
    counted(axes.yaxis, len(rows), 8)
    named = columns.names is not None and width <= _NAMED_STRIPS * figure_width()
    if named:
        axes.set_xticks(
            range(1, width + 1),  # the middles of the strips' cells
            map(columns.name, range(width)),
            rotation=45,
            ha="right",
            rotation_mode="anchor",
        )
    else:
        counted(axes.xaxis, width, 8)
    if not labelled:
        axes.tick_params(labelbottom=False)
    elif not named:
        axes.set_xlabel("feature" if width == len(kept) else f"feature ({len(kept)} of {width} drawn)")
    return image
