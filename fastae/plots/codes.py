"""Codes: the distribution of their values, and their map in two dimensions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..activations import get_activation
from ..diagnostics import saturated
from ..optional import require
from .arrays import Values, as_array, as_labels, as_names, extent, spread
from .labels import place_labels
from .style import (
    CLASS_COLOURS,
    COLOURS,
    GAP,
    INK,
    WIDTH,
    columns_of,
    figure_width,
    new_figure,
    percent,
    plain,
    set_heading,
    styled,
)

_BINS = 40
_FEWEST_FOR_TSNE = 10
_NAMED_CLASSES = 20
_LABEL: dict[str, Any] = {"color": INK, "weight": "bold", "size": 10, "ha": "center", "va": "center"}


@styled
def code_histogram(
    codes: Sequence[Values], activations: Sequence[str], *, title: str = "Values of the codes"
) -> Figure:
    """Draw a histogram per layer of all its codes' values, with the saturated ones in another colour.

    Args:
        codes: [N, H] of each layer.
        activations: name of each layer's activation.

    Raises:
        ValueError: no layers, numbers of both that differ, or codes that are not [N, H] and finite.
    """
    if not codes or len(codes) != len(activations):
        raise ValueError(
            f"codes: {len(codes)} layers for {len(activations)} activations; expected one or more"
        )
    columns = columns_of(len(codes), 2)
    rows = math.ceil(len(codes) / columns)
    figure = new_figure(title, 0.7 + 2.2 * rows)
    for number, (code, activation) in enumerate(zip(codes, activations, strict=True), 1):
        values = as_array(f"codes {number}", code, 2)
        low, high = (
            bound if math.isfinite(bound) else extreme
            for bound, extreme in zip(get_activation(activation).bounds, extent(values), strict=True)
        )
        edges = np.linspace(low, high, _BINS + 1)
        flat = _saturated(values, activation)
        axes = figure.add_subplot(rows, columns, number)
        below = np.zeros(_BINS)
        for kind, colour, name in ((~flat, COLOURS[0], "sensitive"), (flat, COLOURS[1], "saturated")):
            if kind.any():
                # rounding may leave a value just outside the bounds
                shares = np.histogram(values[kind].clip(low, high), edges)[0] / values.size
                axes.bar(
                    edges[:-1],
                    shares,
                    np.diff(edges),
                    below,
                    align="edge",
                    color=colour,
                    linewidth=0,
                    label=name,
                )
                below = below + shares
        kind = activation.replace("_", "-")
        set_heading(axes, f"layer {number}: {values.shape[1]} {kind} units", 1.0 / columns)
        axes.set(xlabel="code h", ylabel="share of all codes", xlim=(low, high))
        axes.set_ylim(0.0, 1.5 * below.max())  # room for the legend above the bars
        axes.yaxis.set_major_locator(MaxNLocator(6))
        percent(axes.yaxis)
        if get_activation(activation).code_tells_slope:
            axes.legend(title=f"saturated: {100 * flat.mean():.1f} %", loc="upper center", ncols=2)
    return figure


@dataclass(frozen=True)
class Projection:
    """Codes in two dimensions: ``places`` [N, 2], the names of both ``axes`` and a ``note`` on the method."""

    places: np.ndarray
    axes: tuple[str, str]
    note: str = ""

    @property
    def has_units(self) -> bool:
        """True if the coordinates mean something."""
        return not self.note


def project(codes: Values, method: Literal["pca", "tsne"] = "pca") -> Projection:
    """Codes [N, H] in two dimensions; see :func:`code_map`."""
    values = as_array("codes", codes, 2)
    if method not in ("pca", "tsne"):
        raise ValueError(f"method: {method!r} is not one of pca, tsne")
    rows, units = values.shape
    if units == 1:
        return Projection(np.column_stack([values[:, 0], np.arange(rows)]), ("code of the only unit", "row"))
    if units == 2:
        return Projection(values, ("code of unit 1", "code of unit 2"))
    varied = bool(np.ptp(values, axis=0).any())
    if method == "tsne" and rows >= _FEWEST_FOR_TSNE and varied:
        manifold = require("sklearn.manifold", "code_map")
        perplexity = min(30.0, (rows - 1) / 3)
        tsne = manifold.TSNE(init="pca", perplexity=perplexity, random_state=0)
        note = f"t-SNE with perplexity {perplexity:.0f}; coordinates have no unit"
        return Projection(tsne.fit_transform(values.astype(np.float32)), ("t-SNE 1", "t-SNE 2"), note)
    if not varied:
        return Projection(np.zeros((rows, 2)), ("PCA 1 (all codes are equal)", "PCA 2"))
    count = min(2, rows)
    pca = require("sklearn.decomposition", "code_map").PCA(count, svd_solver="full")
    places = np.zeros((rows, 2))
    places[:, :count] = pca.fit_transform(values)
    shares = [*pca.explained_variance_ratio_, 0.0][:2]
    first, second = (
        f"PCA {n} ({100 * share:.0f} % of the codes' variance)" for n, share in enumerate(shares, 1)
    )
    return Projection(places, (first, second))


@styled
def code_map(
    codes: Values | Projection,
    labels: Values | None = None,
    *,
    names: Sequence[str] | None = None,
    method: Literal["pca", "tsne"] = "pca",
    limit: int = 3000,
    title: str = "Map of the codes",
) -> Figure:
    """Draw codes in two dimensions, coloured by label where there are labels.

    Codes of two units are drawn as they are. t-SNE keeps neighbours and gives distances no meaning (van der
    Maaten and Hinton 2008); fewer than ten rows, or equal ones, are drawn by PCA. A class is named beside its
    points where its name covers no point and no other name, and in the legend otherwise.

    Args:
        codes: [N, H], or what :func:`project` made of them.
        labels: whole numbers, [N].
        names: names of the labels 0, 1, ...; by default the numbers.
        method: "pca" or "tsne", by scikit-learn; deterministic.
        limit: most rows drawn, evenly spread.

    Raises:
        ValueError: codes, labels or names that do not fit, or an unknown method.
        MissingPackageError: scikit-learn is not installed.
    """
    if isinstance(codes, Projection):
        projection, rows = codes, len(codes.places)
    else:
        codes = as_array("codes", codes, 2)
        projection, rows = None, len(codes)
    classes = as_labels(labels, rows)
    named = as_names("names", names, classes)
    chosen = spread(rows, limit)
    if projection is None:
        projection = project(np.asarray(codes)[chosen], method)
        places = projection.places
    else:
        places = projection.places[chosen]
    figure = new_figure(title, min(5.4, 1.0 + 0.8 * figure_width()))
    axes = figure.add_subplot()
    axes.set(xlabel=projection.axes[0], ylabel=projection.axes[1])
    if not projection.has_units:
        axes.set(xticks=[], yticks=[])
        set_heading(axes, projection.note)
    axes.margins(0.06)
    size = float(np.clip(6000 / len(chosen), 5, 30)) * figure_width() / WIDTH
    if classes is None:
        axes.scatter(*places.T, s=size, color=COLOURS[0], alpha=0.7, linewidths=0)
    else:
        _draw_classes(figure, axes, places, classes[chosen], named, size)
    return figure


def _saturated(values: np.ndarray, activation: str) -> np.ndarray:
    """Mask of the flat codes; none where that takes the pre-activation, as it is unknown."""
    if not get_activation(activation).code_tells_slope:
        return np.zeros(values.shape, bool)
    return saturated(torch.from_numpy(values), activation).numpy()


def _draw_classes(
    figure: Figure, axes: Axes, places: np.ndarray, classes: np.ndarray, names: Mapping[int, str], size: float
) -> None:
    """Points by class, the largest classes in colours; each of these is named on the map or in the legend."""
    found, counts = np.unique(classes, return_counts=True)
    coloured = np.sort(found[np.argsort(-counts, kind="stable")[:_NAMED_CLASSES]])
    rest = ~np.isin(classes, coloured)
    handles = {}
    if rest.any():
        others = len(found) - len(coloured)
        handles[f"{others} others"] = axes.scatter(*places[rest].T, s=size, color=GAP, linewidths=0)
    points = {}
    for number, label in enumerate(coloured.tolist()):
        points[label] = axes.scatter(
            *places[classes == label].T,
            s=size,
            color=CLASS_COLOURS[number % len(CLASS_COLOURS)],
            marker="o^"[number // len(CLASS_COLOURS)],
            alpha=0.75,
            linewidths=0,
            label=plain(names[label]),
        )
    in_legend: set[int] = set()
    while True:  # a legend takes room from the map, and with it perhaps the place of a label
        _legend(axes, handles | {names[label]: points[label] for label in sorted(in_legend)}, size)
        figure.draw_without_rendering()
        texts = _labels_on_map(figure, axes, places, classes, {label: names[label] for label in points}, size)
        missing = points.keys() - texts.keys() - in_legend
        if not missing:
            break
        in_legend |= missing
    for label, place in texts.items():
        if label not in in_legend:
            text = axes.text(*place, plain(names[label]), **_LABEL)
            text.set_in_layout(False)


def _legend(axes: Axes, handles: Mapping[str, Any], size: float) -> None:
    if handles:
        axes.legend(
            handles.values(),
            map(plain, handles),
            title="label",
            loc="upper left",
            bbox_to_anchor=(1.0, 1.0),
            markerscale=max(1.0, (24 / size) ** 0.5),
            handletextpad=0.1,
        )


def _labels_on_map(
    figure: Figure,
    axes: Axes,
    places: np.ndarray,
    classes: np.ndarray,
    names: Mapping[int, str],
    size: float,
) -> dict[int, tuple[float, float]]:
    """Data coordinates of the labels that can be placed, for axes that are laid out."""
    corner, (width, height) = axes.bbox.p0, axes.bbox.size
    sizes = {}
    for label, name in names.items():
        text = axes.text(0.0, 0.0, plain(name), **_LABEL)
        box = text.get_window_extent()
        text.remove()
        sizes[label] = box.width + 2.0, box.height + 2.0
    radius = (size / math.pi) ** 0.5 * figure.dpi / 72
    pixels = axes.transData.transform(places) - corner
    placed = place_labels(pixels, classes, sizes, (width, height), radius)
    to_data = axes.transData.inverted()
    return {label: tuple(to_data.transform(corner + place)) for label, place in placed.items()}
