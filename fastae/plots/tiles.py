"""Rows of data, weights and directions: as images where they are images, else as those of a table."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator

from . import table
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
from .style import (
    COLOURS,
    INK,
    SIGNED,
    WIDTH,
    bare,
    colours,
    columns_of,
    figure_width,
    lines_of,
    new_figure,
    percent,
    set_heading,
    styled,
)
from .table import Columns, Inverse

_DATA = "Greys"
_TILES, _DIRECTIONS = 10, 8
_TILE = 0.43  # inches, of a tile that is looked at by itself
_TALLEST, _LOWEST = 9.0, 2.4  # inches, of a picture, and of a figure with a colour bar
_LINE = 0.19  # inches that a name takes


@styled
def filters(
    weight: Values,
    *,
    shape: Sequence[int] | None = None,
    usage: Values | None = None,
    names: Sequence[str] | None = None,
    limit: int = 112,
    title: str = "Filters: weights of the encoder's units",
) -> Figure:
    """Draw each unit's weights, on one scale that is symmetric about 0: as a tile, or a strip for a table.

    Args:
        weight: [H, D].
        shape: shape of a row, as (28, 28); see :func:`fastae.plots.arrays.image_shape`.
        usage: how much each unit is used, [H], as the deviation of its code; the most used come first. By
            default those with the largest norm do.
        names: of the features, [D]; rows with names are those of a table.
        limit: most units drawn.

    Raises:
        ValueError: shapes that do not fit, or values that are not finite.
    """
    rows = as_array("weight", weight, 2)
    norms = np.linalg.norm(rows, axis=1)
    order_by = norms if usage is None else as_array("usage", usage, 1)
    same_shape("usage", order_by, norms, "the units")
    check_count("limit", limit)
    columns_named = Columns(names)
    columns_named.check(rows)
    form = None if names else image_shape(rows.shape[1], shape)
    if form is not None:
        limit = math.ceil(limit * figure_width() / WIDTH)
    rows = rows[np.argsort(-order_by, kind="stable")[:limit]]
    order = "largest norm" if usage is None else "most used"
    scale = symmetric_scale(rows)
    if form is None:
        figure = new_figure(title, 1.6 + min(5.0, max(1.2, 0.12 * len(rows))))
        axes = figure.add_subplot()
        image = table.strips(axes, rows, scale, columns_named)
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
        set_heading(axes, f"{len(rows)} of {len(norms)} units, {order} first")
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
    names: Sequence[str] | None = None,
    inverse: Inverse | None = None,
    limit: int = 14,
    title: str = "Reconstructions",
) -> Figure:
    """Draw rows above their corruption, where there is one, and their reconstruction; a table's as dots.

    Args:
        clean, reconstructed, corrupted: [N, D]; ``reconstructed`` comes from ``corrupted``, where given.
        shape: shape of a row, as (28, 28).
        names: of the features, [D]; rows with names are those of a table.
        inverse: undoes the scaling of rows [N, D]; a table's values are then written in its own units.
        limit: most rows drawn, evenly spread.

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
    columns = Columns(names, inverse)
    columns.check(first)
    form = None if names else image_shape(first.shape[1], shape)
    chosen = spread(len(first), _fitting(form, limit) if form else table.panels_of(limit))
    if form is None:
        return table.rows_figure(title, named, chosen, columns, first.mean(0))
    tiles = [form.images(rows[chosen]) for rows in named.values()]
    low, high = extent(first[chosen])
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
    names: Sequence[str] | None = None,
    limit: int = 6,
    title: str = "Directions that the code is most sensitive to",
) -> Figure:
    """Draw points beside the leading directions of their tangent space, as the encoder sees it.

    Args:
        points: [N, D].
        directions: unit vectors, [N, k, D], the most sensitive first; of
            :func:`fastae.diagnostics.tangents`.
        shape: shape of a row, as (28, 28).
        names: of the features, [D]; rows with names are those of a table.
        limit: most points drawn, the first ones.

    Raises:
        ValueError: shapes that do not fit, or values that are not finite.
    """
    rows, vectors = as_array("points", points, 2), as_array("directions", directions, 3)
    same_shape("directions", vectors[:, 0], rows, "the points")
    check_count("limit", limit)
    columns = Columns(names)
    columns.check(rows)
    form = None if names else image_shape(rows.shape[1], shape)
    if form is None:
        return _direction_strips(title, vectors[:limit, :_DIRECTIONS], columns)
    rows, vectors = rows[:limit], vectors[:limit, : math.ceil(_DIRECTIONS * figure_width() / WIDTH)]
    count, scale = vectors.shape[1], symmetric_scale(vectors)
    low, high = extent(rows)
    left = montage(_scaled(form.images(rows), low, high), 1)
    tiles = _signed(form.images(vectors.reshape(-1, rows.shape[1])), scale)
    right = montage(tiles, count)
    share = (left.shape[1] + right.shape[1]) / figure_width() / 0.8
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
    names: Sequence[str] | None = None,
    inverse: Inverse | None = None,
    count: int = _TILES,
    unit: str = "sum over features",
    note: str = "",
    title: str = "Reconstruction error per row",
) -> Figure:
    """Draw a histogram of the rows' errors, an anomaly score, and the rows reconstructed best and worst.

    Args:
        values: error of each row, [N].
        rows, reconstructed: [N, D].
        shape: shape of a row, as (28, 28).
        names: of the features, [D]; rows with names are those of a table.
        inverse: undoes the scaling of rows [N, D]; a table's values are then written in its own units.
        count: rows of each kind; fewer in a table, or where half of the rows is less.
        unit: meaning of an error, for the axis.
        note: what the title ends with.

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
    columns = Columns(names, inverse)
    columns.check(x)
    form = None if names else image_shape(x.shape[1], shape)
    check_count("count", count)
    count = max(1, min(_fitting(form, count) if form else columns_of(count, 2), len(scores) // 2))
    order = np.argsort(scores, kind="stable")
    groups = {"best": order[:count]}
    if len(scores) > 1:
        groups["worst"] = order[::-1][:count]
    low, high = extent(x)
    canvases = {}
    if form is None:
        height = table.height_of_row(x.shape[1]) * len(groups)
    else:
        canvases = {
            name: montage(_scaled(form.images(np.concatenate([x[index], r[index]])), low, high), count)
            for name, index in groups.items()
        }
        share = 0.86 if count > 4 else 0.4
        height = min(_TALLEST, sum(0.25 + _named_height(canvas, 2, share) for canvas in canvases.values()))
    figure = new_figure(f"{title}: {note}" if note else title, 2.9 + height)
    grid = GridSpec(1 + len(groups), 1, figure, height_ratios=[2.3, *[height / len(groups)] * len(groups)])
    _histogram(figure.add_subplot(grid[0]), scores, unit)
    for place, (name, index) in enumerate(groups.items(), 1):
        low_score, high_score = scores[index].min(), scores[index].max()
        heading = f"reconstructed {name}: error {low_score:.3g} to {high_score:.3g}"
        if form is None:
            panels = {"row": x[index], "reconstruction": r[index]}
            table.draw_rows(figure, grid[place], panels, heading, columns, x.mean(0))
        else:
            axes = figure.add_subplot(grid[place])
            _show_named(axes, canvases[name], ["row", "reconstruction"], low, high)
            set_heading(axes, heading, 0.65)
    if form is None:
        table.legend_below(figure)
    return figure


@styled
def latent_rows(
    directions: Values,
    rows: Values | None,
    labels: Sequence[str],
    *,
    shape: Sequence[int] | None = None,
    names: Sequence[str] | None = None,
    title: str = "Latents and the rows that activate them most",
) -> Figure:
    """Draw each latent's direction, beside the rows that activate it most where rows are images.

    Args:
        directions: decoder rows, [L, D].
        rows: [L, R, D], strongest first.
        labels: of the latents, [L].
        shape: shape of a row, as (28, 28).
        names: of the features, [D]; rows with names are those of a table.

    Raises:
        ValueError: shapes that do not fit, or values that are not finite.
    """
    vectors = as_array("directions", directions, 2)
    same_shape("labels", np.asarray(labels), vectors[:, 0], "the directions")
    columns = Columns(names)
    columns.check(vectors)
    scale = symmetric_scale(vectors)
    form = None if names else image_shape(vectors.shape[1], shape)
    if form is None or rows is None:
        figure = new_figure(title, max(_LOWEST, 1.0 + 0.22 * len(vectors) + (0.8 if names else 0.0)))
        axes = figure.add_subplot()
        image = table.strips(axes, vectors, scale, columns)
        axes.set_yticks(range(1, len(vectors) + 1), labels)
        _bar(figure, axes, image, "weight in the direction")
        return figure
    examples = as_array("rows", rows, 3)
    same_shape("rows", examples[:, 0], vectors, "the directions")
    examples = examples[:, : _fitting(form, examples.shape[1])]
    low, high = extent(examples)
    left = montage(_signed(form.images(vectors), scale), 1)
    right = _scaled(form.images(examples.reshape(-1, vectors.shape[1])), low, high)
    right = montage(right, examples.shape[1])
    share = (left.shape[1] + right.shape[1]) / figure_width() / 0.7
    figure = new_figure(title, max(_LOWEST, min(_TALLEST, 0.7 + len(left) / share)))
    grid = GridSpec(1, 2, figure, width_ratios=[left.shape[1], right.shape[1]])
    axes = figure.add_subplot(grid[0])
    image = _show(axes, left, SIGNED, -scale, scale)
    step = (len(left) - 1) / len(vectors)
    axes.set_yticks([step * (number + 0.5) for number in range(len(vectors))], labels)
    axes.tick_params(axis="y", length=0, pad=2)
    axes.set_title("latent", loc="center")
    axes = figure.add_subplot(grid[1])
    _show(axes, right, _DATA, low, high)
    axes.set_title("rows, strongest first", loc="center")
    if form.channels == 1:
        _bar(figure, axes, image, "weight of the latent")
    return figure


def _direction_strips(title: str, vectors: np.ndarray, columns: Columns) -> Figure:
    """Directions [N, k, D] of the points of a table: a panel of strips per point."""
    count, scale = vectors.shape[1], symmetric_scale(vectors)
    height = min(7.0, len(vectors) * (0.45 + 0.16 * count))
    figure = new_figure(title, max(_LOWEST, 1.0 + height + (0.8 if columns.names else 0.0)))
    panels = [figure.add_subplot(len(vectors), 1, number + 1) for number in range(len(vectors))]
    image = None
    for number, axes in enumerate(panels):
        image = table.strips(axes, vectors[number], scale, columns, labelled=axes is panels[-1])
        axes.set_yticks(range(1, count + 1))
        axes.set_ylabel(f"point {number + 1}")
    assert image is not None
    _bar(figure, panels, image, "weight in the direction")
    return figure


def symmetric_scale(weights: np.ndarray) -> float:
    """The magnitude at the ends of the colour scale.

    A few outliers do not wash out the rest, and noise below a tenth of them is not blown up either.
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
    return min(_TALLEST, share * figure_width() * canvas.shape[0] / canvas.shape[1])


def _named_height(canvas: np.ndarray, names: int, share: float) -> float:
    """The same, where there must be room for the names of its rows of tiles."""
    height = _height(canvas, share)
    return height if height >= _LINE * names else max(_height(canvas, 0.86), _LINE * names)


def _fitting(form: ImageShape, most: int) -> int:
    """Number of tiles that fit beside each other, wide enough to be seen and high enough for a name."""
    room = 0.86 * figure_width()
    return max(1, min(most, int(room / _TILE), int(room * form.height / (form.width * _LINE))))


def _show(axes: Axes, canvas: np.ndarray, cmap: str, low: float, high: float) -> AxesImage:
    bare(axes)
    image = axes.imshow(canvas, cmap=colours(cmap), vmin=low, vmax=high, interpolation="none")
    if canvas.ndim == 3:
        image.set_gid("photo")
    return image


def _show_named(axes: Axes, canvas: np.ndarray, names: Sequence[str], low: float, high: float) -> None:
    """A montage of one row of tiles per name, with the names at its left."""
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
    axes.set(xlabel=lines_of(f"error per row, {unit}", 0.8), ylabel="share of rows")
    percent(axes.yaxis)
    columns = columns_of(2, 2)
    axes.legend(
        loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=columns, borderaxespad=0.2
    )  # above the bars
