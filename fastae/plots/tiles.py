"""Rows of data, weights and directions: as images where they are, else as lines and strips."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec, SubplotSpec
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator

from .arrays import (
    ImageShape,
    Values,
    as_array,
    check_count,
    extent,
    image_shape,
    montage,
    same_shape,
    spread,
)
from .style import COLOURS, INK, SIGNED, WIDTH, bare, colours, new_figure, percent, styled, whole

_DATA = "Greys"
_LOOKS = (
    {"color": INK, "linewidth": 2.2, "alpha": 0.45},
    {"color": COLOURS[1], "linewidth": 0.0, "marker": ".", "markersize": 4},
    {"color": COLOURS[0], "linewidth": 1.4},
)
_MOST_FEATURES = 240  # drawn of a row that is no image
_PANELS = 6
_TILES = 10
_TALLEST, _LOWEST = 9.0, 2.4  # inches, of a picture, and of a figure with a colour bar
_LINE = 0.19  # inches that a name takes


@styled
def filters(
    weight: Values,
    *,
    shape: Sequence[int] | None = None,
    usage: Values | None = None,
    limit: int = 112,
    title: str = "Filters: weights of the encoder's units",
) -> Figure:
    """A unit's weights as a tile, all on one scale that is symmetric about 0; else as a strip each.

    Args:
        weight: [H, D].
        shape: of a row, as (28, 28); see :func:`fastae.plots.arrays.image_shape`.
        usage: how much each unit is used, [H], as the deviation of its code; the most used come first. By
            default those with the largest norm do.
        limit: of the units drawn.

    Raises:
        ValueError: shapes that do not fit, or values that are not finite.
    """
    rows = as_array("weight", weight, 2)
    norms = np.linalg.norm(rows, axis=1)
    order_by = norms if usage is None else as_array("usage", usage, 1)
    same_shape("usage", order_by, norms, "the units")
    check_count("limit", limit)
    rows = rows[np.argsort(-order_by, kind="stable")[:limit]]
    form = image_shape(rows.shape[1], shape)
    order = "largest norm" if usage is None else "most used"
    scale = _symmetric(rows)
    if form is None:
        figure = new_figure(title, 1.4 + min(5.0, max(1.2, 0.12 * len(rows))))
        axes = figure.add_subplot()
        image = _strips(axes, rows, scale)
        axes.set_ylabel(f"unit, {order} first")
    else:
        tiles = form.images(rows)
        columns = min(
            len(tiles), max(1, round(math.sqrt(1.75 * len(tiles) * tiles.shape[1] / tiles.shape[2])))
        )
        canvas = montage(_signed(tiles, scale), columns)
        figure = new_figure(title, 0.75 + _height(canvas, 0.88))
        axes = figure.add_subplot()
        image = _show(axes, canvas, SIGNED, -scale, scale)
    if len(rows) < len(norms):
        axes.set_title(f"{len(rows)} of {len(norms)} units, {order} first")
    if form is None or form.channels == 1:
        _bar(figure, axes, image, "weight")
    return figure


@styled
def reconstructions(
    clean: Values,
    reconstructed: Values,
    corrupted: Values | None = None,
    *,
    shape: Sequence[int] | None = None,
    limit: int = 14,
    title: str = "Reconstructions",
) -> Figure:
    """Rows above their corruption, where there is one, and its reconstruction; as lines where not images.

    Args:
        clean, reconstructed, corrupted: [N, D]; ``reconstructed`` comes from ``corrupted``, where given.
        shape: of a row, as (28, 28).
        limit: of the rows drawn, evenly spread.

    Raises:
        ValueError: shapes that differ or do not fit, or values that are not finite.
    """
    first = as_array("clean", clean, 2)
    named = {"clean": first}
    if corrupted is not None:
        named["corrupted"] = as_array("corrupted", corrupted, 2)
    named["reconstructed"] = as_array("reconstructed", reconstructed, 2)
    for name, rows in named.items():
        same_shape(name, rows, first, "clean")
    form = image_shape(first.shape[1], shape)
    chosen = spread(len(first), _fitting(form, limit) if form else min(limit, _PANELS))
    named = {name: rows[chosen] for name, rows in named.items()}
    if form is None:
        return _line_panels(title, named, [f"row {number}" for number in chosen])
    tiles = [form.images(rows) for rows in named.values()]
    low, high = extent(named["clean"])
    canvas = montage(_scaled(np.concatenate(tiles), low, high), len(chosen))
    figure = new_figure(title, 0.5 + _named_height(canvas, len(named), 0.86 if len(chosen) > 4 else 0.35))
    _show_named(figure.add_subplot(), canvas, list(named), low, high)
    return figure


@styled
def tangent_tiles(
    points: Values,
    directions: Values,
    *,
    shape: Sequence[int] | None = None,
    limit: int = 6,
    title: str = "Directions that the code is most sensitive to",
) -> Figure:
    """Points beside the leading directions of their tangent space, as the encoder sees it.

    Args:
        points: [N, D].
        directions: unit vectors, [N, k, D], the most sensitive first; of
            :func:`fastae.diagnostics.tangents`.
        shape: of a row, as (28, 28).
        limit: of the points drawn, the first ones.

    Raises:
        ValueError: shapes that do not fit, or values that are not finite.
    """
    rows, vectors = as_array("points", points, 2), as_array("directions", directions, 3)
    same_shape("directions", vectors[:, 0], rows, "the points")
    check_count("limit", limit)
    rows, vectors = rows[:limit], vectors[:limit, :8]
    count, form = vectors.shape[1], image_shape(rows.shape[1], shape)
    scale = _symmetric(vectors)
    if form is None:
        figure = new_figure(title, max(_LOWEST, 1.0 + min(7.0, len(rows) * (0.45 + 0.16 * count))))
        panels = [figure.add_subplot(len(rows), 1, number + 1) for number in range(len(rows))]
        for number, axes in enumerate(panels):
            image = _strips(axes, vectors[number], scale, labelled=axes is panels[-1])
            axes.set_yticks(range(count), [str(k + 1) for k in range(count)])
            axes.set_ylabel(f"point {number + 1}")
        _bar(figure, panels, image, "weight in the direction")  # pyright: ignore[reportPossiblyUnboundVariable]
        return figure
    low, high = extent(rows)
    left = montage(_scaled(form.images(rows), low, high), 1)
    tiles = _signed(form.images(vectors.reshape(-1, rows.shape[1])), scale)
    right = montage(tiles, count)
    share = (left.shape[1] + right.shape[1]) / WIDTH / 0.8
    figure = new_figure(title, max(_LOWEST, min(_TALLEST, 0.7 + len(left) / share)))
    grid = GridSpec(1, 2, figure, width_ratios=[left.shape[1], right.shape[1]])
    axes = figure.add_subplot(grid[0])
    _show(axes, left, _DATA, low, high)
    axes.set_title("row", loc="center")
    axes = figure.add_subplot(grid[1])
    image = _show(axes, right, SIGNED, -scale, scale)
    axes.set_title(f"directions 1 to {count}" if count > 1 else "direction", loc="center")
    if form.channels == 1:
        _bar(figure, axes, image, "weight in the direction")
    return figure


@styled
def errors(
    values: Values,
    rows: Values,
    reconstructed: Values,
    *,
    shape: Sequence[int] | None = None,
    count: int = _TILES,
    unit: str = "sum over features",
    title: str = "Reconstruction error of each row",
) -> Figure:
    """The errors' histogram, and the rows that are reconstructed best and worst: an anomaly score's picture.

    Args:
        values: error of each row, [N].
        rows, reconstructed: [N, D].
        shape: of a row, as (28, 28).
        count: rows of each kind; fewer where they are not images or half of the rows is less.
        unit: what the error sums or averages, for the axis.

    Raises:
        ValueError: shapes that differ or do not fit, or values that are not finite.
    """
    scores, x, r = (
        as_array("values", values, 1),
        as_array("rows", rows, 2),
        as_array("reconstructed", reconstructed, 2),
    )
    same_shape("reconstructed", r, x, "rows")
    same_shape("values", scores, x[:, 0], "rows, one for each")
    form = image_shape(x.shape[1], shape)
    check_count("count", count)
    count = max(1, min(_fitting(form, count) if form else 3, len(scores) // 2))
    order = np.argsort(scores, kind="stable")
    groups = {"best": order[:count]}
    if len(scores) > 1:
        groups["worst"] = order[::-1][:count]
    if form is None:
        height = 1.5 * len(groups)
    else:
        low, high = extent(x)
        canvases = {
            name: montage(_scaled(form.images(np.concatenate([x[index], r[index]])), low, high), count)
            for name, index in groups.items()
        }
        share = 0.86 if count > 4 else 0.4
        heights = [0.25 + _named_height(canvas, 2, share) for canvas in canvases.values()]
        height = min(_TALLEST, sum(heights))
    figure = new_figure(title, 2.9 + height)
    grid = GridSpec(1 + len(groups), 1, figure, height_ratios=[2.3, *[height / len(groups)] * len(groups)])
    _histogram(figure.add_subplot(grid[0]), scores, unit)
    for place, (name, index) in enumerate(groups.items(), 1):
        low_score, high_score = scores[index].min(), scores[index].max()
        heading = f"reconstructed {name}: error {low_score:.3g} to {high_score:.3g}"
        if form is None:
            _lines(figure, grid[place], {"row": x[index], "reconstruction": r[index]}, heading)
        else:
            axes = figure.add_subplot(grid[place])
            names = ["row", "reconstruction"]
            _show_named(axes, canvases[name], names, low, high)  # pyright: ignore[reportPossiblyUnboundVariable]
            axes.set_title(heading)
    if form is None:
        figure.legend(*figure.axes[-1].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


# --- images ---------------------------------------------------------------------------------------------


def _symmetric(weights: np.ndarray) -> float:
    """The magnitude at the ends of the colour scale.

    A few outliers do not wash out the rest, and what is below a tenth of them is not blown up either.
    """
    magnitudes = np.abs(weights)
    return max(float(np.quantile(magnitudes, 0.99)), 0.1 * float(magnitudes.max())) or 1.0


def _scaled(images: np.ndarray, low: float, high: float) -> np.ndarray:
    """Colour images in [0, 1]; the others are scaled by their colour map."""
    return np.clip((images - low) / (high - low), 0.0, 1.0) if images.ndim == 4 else images


def _signed(images: np.ndarray, scale: float) -> np.ndarray:
    return _scaled(images, -scale, scale)


def _height(canvas: np.ndarray, share: float) -> float:
    """Inches that a picture takes as ``share`` of the figure's width, or less where it would be too tall."""
    return min(_TALLEST, share * WIDTH * canvas.shape[0] / canvas.shape[1])


def _named_height(canvas: np.ndarray, names: int, share: float) -> float:
    """The same, where there must be room for the names of its rows of tiles."""
    height = _height(canvas, share)
    return height if height >= _LINE * names else max(_height(canvas, 0.86), _LINE * names)


def _fitting(form: ImageShape, most: int) -> int:
    """How many tiles beside each other are not too low for a name."""
    return max(1, min(most, int(0.86 * WIDTH * form.height / (form.width * _LINE))))


def _show(axes: Axes, canvas: np.ndarray, cmap: str, low: float, high: float) -> AxesImage:
    bare(axes)
    return axes.imshow(canvas, cmap=colours(cmap), vmin=low, vmax=high, interpolation="none")


def _show_named(axes: Axes, canvas: np.ndarray, names: Sequence[str], low: float, high: float) -> None:
    """A montage of one row of tiles a name, with the names at its left."""
    _show(axes, canvas, _DATA, low, high)
    if _height(canvas, 0.86) < _LINE * len(names):  # a strip, which is stretched
        axes.set_aspect("auto")
    step = (len(canvas) - 1) / len(names)
    axes.set_yticks([step * (number + 0.5) for number in range(len(names))], names)
    axes.tick_params(axis="y", length=0, pad=2)


def _bar(figure: Figure, axes: Axes | list[Axes], image: AxesImage, label: str) -> None:
    bar = figure.colorbar(image, ax=axes, fraction=0.03, pad=0.015, aspect=28, extend="both")
    bar.set_label(label)
    bar.locator = MaxNLocator(5, symmetric=True)
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
    bar.update_ticks()


# --- rows that are no images ----------------------------------------------------------------------------


def _strips(axes: Axes, rows: np.ndarray, scale: float, labelled: bool = True) -> AxesImage:
    """Rows [N, D] as strips of colour, one above the other; wide rows subsampled."""
    kept = spread(rows.shape[1], _MOST_FEATURES)
    image = axes.imshow(
        rows[:, kept], cmap=colours(SIGNED), vmin=-scale, vmax=scale, aspect="auto", interpolation="none",
        extent=(-0.5, rows.shape[1] - 0.5, len(rows) - 0.5, -0.5),
    )  # fmt: skip
    axes.grid(False)
    whole(axes.xaxis, 8)
    whole(axes.yaxis, 8)
    if labelled:
        axes.set_xlabel(_features(rows.shape[1], len(kept)))
    else:
        axes.tick_params(labelbottom=False)
    return image


def _features(width: int, kept: int) -> str:
    return "feature" if kept == width else f"feature ({kept} of {width} drawn)"


def _line_panels(title: str, named: Mapping[str, np.ndarray], names: Sequence[str]) -> Figure:
    """One panel a row of data, each with the same kinds of lines."""
    figure = new_figure(title, 0.7 + 1.5 * math.ceil(len(names) / 2))
    columns = min(2, len(names))
    width = next(iter(named.values())).shape[1]
    kept = spread(width, _MOST_FEATURES)
    looks = _LOOKS if len(named) == 3 else _LOOKS[::2]
    for number, name in enumerate(names):
        axes = figure.add_subplot(math.ceil(len(names) / columns), columns, number + 1)
        for (kind, rows), look in zip(named.items(), looks, strict=True):
            axes.plot(kept, rows[number, kept], label=kind, **{**look, **_dotted(len(kept), look)})
        axes.set(title=name, ylabel="value", xlim=(-0.5, width - 0.5))
        whole(axes.xaxis, 6)
        if number >= len(names) - columns:
            axes.set_xlabel(_features(width, len(kept)))
    handles = figure.axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=len(named))
    return figure


def _lines(figure: Figure, place: SubplotSpec, named: Mapping[str, np.ndarray], heading: str) -> None:
    """Panels beside each other, one a row of data, in a part of a figure."""
    first = next(iter(named.values()))
    kept = spread(first.shape[1], _MOST_FEATURES)
    panels = place.subgridspec(1, len(first)).subplots(sharey=True, squeeze=False)[0]
    for number, axes in enumerate(panels):
        for (kind, rows), look in zip(named.items(), _LOOKS[::2], strict=True):
            axes.plot(kept, rows[number, kept], label=kind, **{**look, **_dotted(len(kept), look)})
        axes.set_xlabel(_features(first.shape[1], len(kept)))
        whole(axes.xaxis, 4)
    panels[0].set(title=heading, ylabel="value")


def _dotted(points: int, look: Mapping[str, object]) -> dict[str, object]:
    """A line of few points shows them: one of a single point would be invisible."""
    return {"marker": "o"} if points < 8 and "marker" not in look else {}


def _histogram(axes: Axes, scores: np.ndarray, unit: str) -> None:
    bins = min(60, max(5, round(2 * len(scores) ** 0.5)))
    weights = np.full(len(scores), 1.0 / len(scores))
    axes.hist(scores, bins, range=extent(scores), weights=weights, color=COLOURS[0], linewidth=0)
    for quantile, line in ((0.5, "-"), (0.95, "--")):
        value = float(np.quantile(scores, quantile))
        name = "median" if quantile == 0.5 else f"{100 * quantile:.0f} % of rows are below"
        axes.axvline(
            value, color=INK if quantile == 0.5 else COLOURS[1], linestyle=line, label=f"{name} {value:.3g}"
        )
    axes.set(xlabel=f"error of a row, {unit}", ylabel="share of rows")
    percent(axes.yaxis)
    axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2, borderaxespad=0.2)  # above the bars
