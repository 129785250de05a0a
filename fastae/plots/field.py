"""The displacement of a plane's points by the reconstruction."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from torch import Tensor

from .. import diagnostics
from ..nn import Autoencoder, StackedAutoencoder
from .arrays import Values, as_array, check_count, same_shape, spread
from .style import COLOURS, MAGNITUDE, figure_width, new_figure, styled


@styled
def vector_field_2d(
    data: Values,
    field: Autoencoder | StackedAutoencoder | Callable[[Tensor], Tensor],
    *,
    grid: int = 26,
    margin: float = 0.2,
    limit: int = 2000,
    title: str = "Where the reconstruction moves each point",
) -> Figure:
    """Draw arrows along r(x) - x on a regular grid of the plane, over the data.

    A trained denoising or contractive autoencoder points to the data, and r(x) - x is the noise's variance
    times an estimate of the score d log p(x) / dx (Alain and Bengio 2014). The colour is ||r(x) - x||; an
    arrow's length grows with its cube root.

    Args:
        data: [N, 2].
        field: an autoencoder of two features, or the map from points [G, 2] to displacements [G, 2].
        grid: arrows along the longer side, at least 2.
        margin: around the data, as a share of their extent, above 0.
        limit: most rows of the data drawn.

    Raises:
        ValueError: ``data`` or the displacements are not [N, 2] and finite, or another argument, named.
    """
    points = as_array("data", data, 2)
    if points.shape[1] != 2:
        raise ValueError(f"data: expected two features, got {points.shape[1]}")
    check_count("grid", grid, 2)
    if not 0.0 < margin < np.inf:
        raise ValueError(f"margin: must be a finite number > 0, got {margin!r}")
    low, high = _surroundings(points, margin)
    counts = np.maximum(2, np.rint(grid * (high - low) / (high - low).max())).astype(int)
    sides = [np.linspace(*side) for side in zip(low, high, counts, strict=True)]
    places = np.stack(np.meshgrid(*sides), -1).reshape(-1, 2)

    if isinstance(field, Autoencoder | StackedAutoencoder):
        parameter = next(field.parameters())
        moved = diagnostics.vector_field(field, torch.from_numpy(places).to(parameter))
    else:
        moved = field(torch.from_numpy(places).to(torch.get_default_dtype()))
    vectors = as_array("field", moved, 2)
    same_shape("field", vectors, places, "the points")

    # no arrow is longer than the grid is wide, and the short ones near the data can still be seen
    lengths = np.linalg.norm(vectors, axis=1)
    spacing = float((high - low).max()) / grid
    largest = lengths.max() or 1.0
    shown = spacing * 0.95 * np.cbrt(lengths / largest)
    arrows = vectors * (shown / np.where(lengths > 0, lengths, 1.0))[:, None]

    ratio = float((high - low)[1] / (high - low)[0])
    figure = new_figure(title, min(7.0, max(2.6, 0.4 + 0.78 * figure_width() * ratio)))
    axes = figure.add_subplot()
    chosen = points[spread(len(points), limit)]
    axes.scatter(*chosen.T, s=7, color=COLOURS[1], linewidths=0, label="data", zorder=2)
    quiver = axes.quiver(
        *places.T,
        *arrows.T,
        lengths,
        cmap=MAGNITUDE,
        norm=Normalize(0.0, largest),
        angles="xy",
        scale_units="xy",
        scale=1.0,
        width=0.0028,
        zorder=3,
    )
    bar = figure.colorbar(quiver, ax=axes, fraction=0.046, pad=0.02)
    bar.set_label("‖r(x) - x‖")
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
    axes.set(
        xlabel="feature 1", ylabel="feature 2", aspect="equal", xlim=(low[0], high[0]), ylim=(low[1], high[1])
    )
    axes.grid(False)
    figure.legend(loc="outside lower center")
    return figure


def _surroundings(points: np.ndarray, margin: float) -> tuple[np.ndarray, np.ndarray]:
    """The lower and upper corners [2] of the points' bounding box, widened by a share of its longer side."""
    low, high = points.min(0), points.max(0)
    extent, magnitude = float((high - low).max()), float(np.abs(points).max())
    if extent <= 1e-9 * magnitude or not extent:  # a single point
        extent = max(1.0, 0.1 * magnitude)
    return low - margin * extent, high + margin * extent
