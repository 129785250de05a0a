"""Curves: losses over epochs, the spectrum of the encoder's Jacobian, contraction over distances."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .arrays import Values, as_array, as_curves
from .style import COLOURS, INK, MUTED, columns_of, counted, new_figure, plain, set_heading, styled

_PARTS = {"train": "training", "validation": "validation"}
_UNITS = {
    "total": "weighted sum, mean over rows",
    "reconstruction": "sum over features, mean over rows",
    "contractive": "‖∂h/∂x‖², mean over rows",
    "higher_order": "E‖J(x) - J(x + e)‖², mean over rows",
    "l1": "Σ|h|, mean over rows",
    "kl": "KL, sum over units",
    "error": "share of rows, %",
}
_MARKERS = "os^Dv<>"
_BEGINNING = 0.1  # of the epochs, which may leave a panel at its top


@styled
def learning_curves(history: Sequence[Mapping[str, Any]], *, title: str = "Learning curves") -> Figure:
    """Draw a panel per stage and term: training and, where there is one, validation over epochs.

    Terms come without their weights, the total with them; a total of a single term is left out. Where the
    first epochs would flatten the rest, they leave the panel, and their largest value is written there.
    Values that are not finite break their curve and are marked by crosses.

    Args:
        history: rows of a run's ``history`` or of its log.csv (numbers may be text; empty is missing).

    Raises:
        ValueError: there is no finite value of any term, or a row without stage or epoch.
    """
    panels = panels_of(history)
    columns = columns_of(len(panels), 2 if len(panels) == 4 else 3)
    rows = math.ceil(len(panels) / columns)
    figure = new_figure(title, 0.95 + 1.95 * rows)
    for number, panel in enumerate(panels, 1):
        axes = figure.add_subplot(rows, columns, number)
        set_heading(axes, panel.name, 0.75 / columns)  # the rest is the labels of the other panels
        axes.set(xlabel="epoch", ylabel=panel.unit.replace(", mean", ",\nmean"))
        _draw_panel(axes, panel)
    _legend_of_all(figure)
    return figure


@dataclass(frozen=True)
class Panel:
    """A term of a stage: its name and unit, and epochs and values [E] of "training" and "validation"."""

    name: str
    unit: str
    curves: Mapping[str, tuple[np.ndarray, np.ndarray]]


def panels_of(history: Sequence[Mapping[str, Any]]) -> list[Panel]:
    """The terms of each stage, in the order of the stages; see :func:`learning_curves`."""
    points: dict[str, dict[str, dict[str, list[tuple[float, float]]]]] = {}
    for index, row in enumerate(history):
        epoch = _number(row.get("epoch"))
        if epoch is None or "stage" not in row:
            raise ValueError(f"history: row {index} needs a stage and an epoch, got {dict(row)}")
        for term in _UNITS:
            for part, name in _PARTS.items():
                if (value := _number(row.get(f"{part}_{term}"))) is not None:
                    terms = points.setdefault(str(row["stage"]), {})
                    terms.setdefault(term, {}).setdefault(name, []).append((epoch, value))
    panels = []
    for stage, terms in points.items():
        for term in _UNITS:
            if term not in terms or (term == "total" and set(terms) == {"total", "reconstruction"}):
                continue
            unit = "cross-entropy, mean over rows" if term == "total" and "error" in terms else _UNITS[term]
            factor = 100.0 if term == "error" else 1.0
            curves = {part: np.array(curve).T for part, curve in terms[term].items()}
            named = {part: (epochs, factor * values) for part, (epochs, values) in curves.items()}
            panels.append(Panel(f"{stage}: {term.replace('_', '-')}", unit, named))
    if not any(np.isfinite(values).any() for panel in panels for _, values in panel.curves.values()):
        raise ValueError(f"history: no finite value in {len(history)} rows")
    return panels


def _draw_panel(axes: Axes, panel: Panel) -> None:
    for part, colour, line in zip(_PARTS.values(), COLOURS, ("-", "--"), strict=False):
        if part not in panel.curves:
            continue
        epochs, values = panel.curves[part]
        lost = ~np.isfinite(values)
        if not lost.all():
            # a value between two breaks has no line to be seen by
            marker = "o" if len(values) < 8 or lost.any() else ""
            axes.plot(epochs, np.where(lost, np.nan, values), line, color=colour, marker=marker, label=part)
        if lost.any():
            axes.plot(
                epochs[lost],
                np.full(lost.sum(), 0.06),
                "x",
                color=INK,
                markersize=6,
                transform=axes.get_xaxis_transform(),
                label="not finite",
            )
    counted(axes.xaxis, max(int(epochs.max()) for epochs, _ in panel.curves.values()), 5)
    _clip_beginning(axes)
    if any(line.get_label() in _PARTS.values() for line in axes.lines):
        axes.yaxis.set_major_locator(MaxNLocator(5))
    else:  # crosses only, which have no height
        axes.set_yticks([])


@styled
def spectrum(
    values: Values | Mapping[str, Values], *, title: str = "Singular values of the encoder's Jacobian"
) -> Figure:
    """Draw singular values of dh/dx, largest first, on a logarithmic scale where they are positive.

    Few large ones over many small ones: the encoder follows a few directions, those along the data, and
    contracts the others (Rifai et al. 2011, sec. 5.3).

    Args:
        values: means over rows, [k]; several by name.

    Raises:
        ValueError: no or not finite values, or negative ones.
    """
    curves = as_curves("values", values)
    for name, curve in curves.items():
        if curve.min() < 0.0:
            raise ValueError(f"values {name}".strip() + f": singular values are >= 0, got {curve.min():g}")
    figure = new_figure(title, 3.4)
    axes = figure.add_subplot()
    positive = any(curve.max() > 0.0 for curve in curves.values())
    for (name, curve), colour, marker in _looks(curves):
        if positive and not curve.any():
            name = f"{name} (all are 0)"  # nowhere on a logarithmic scale
        floor = curve.max() * 1e-6  # what is below is rounding, or a dead unit
        kept = np.where(curve > floor, curve, np.nan) if positive else curve
        _line(axes, np.arange(1, len(curve) + 1), kept, name, colour, marker)
    if positive:
        axes.set_yscale("log")
    axes.set(xlabel="number, largest first", ylabel="singular value of ∂h/∂x,\nmean over rows")
    longest = max(map(len, curves.values()))
    counted(axes.xaxis, longest, 10)
    axes.set_xlim(1 - 0.04 * longest, longest * 1.04)
    _legend(axes, curves)
    return figure


@styled
def contraction(
    radii: Values, ratios: Values | Mapping[str, Values], *, title: str = "Contraction around the data"
) -> Figure:
    """Draw the ratio of distances between codes and between inputs, over the inputs' distance.

    Args:
        radii: distances ||e|| from a row, [R], positive.
        ratios: mean of ||h(x + e) - h(x)|| / ||e|| over rows and directions, [R]; several by name.

    Raises:
        ValueError: lengths that differ, values that are not finite, radii that are not positive.
    """
    distances = as_array("radii", radii, 1)
    if distances.min() <= 0.0:
        raise ValueError(f"radii: must be positive, got {distances.min():g}")
    order = np.argsort(distances, kind="stable")
    curves = as_curves("ratios", ratios)
    figure = new_figure(title, 3.4)
    axes = figure.add_subplot()
    for (name, curve), colour, marker in _looks(curves):
        if len(curve) != len(distances):
            raise ValueError(f"ratios {name}".strip() + f": {len(curve)} values for {len(distances)} radii")
        _line(axes, distances[order], curve[order], name, colour, marker)
    if distances.max() > 8 * distances.min():
        axes.set_xscale("log")
    axes.set_ylim(0.0, 1.15 * max(curve.max() for curve in curves.values()) or 1.0)
    axes.set(xlabel="distance ‖e‖ in the input's units", ylabel="‖h(x + e) - h(x)‖ / ‖e‖,\nmean over rows")
    _legend(axes, curves)
    return figure


def later_limits(curves: Sequence[np.ma.MaskedArray]) -> tuple[float, float] | None:
    """Limits of an axis that leave out the first epochs, where these are far above what follows."""
    first = max(1, math.ceil(_BEGINNING * max(map(len, curves), default=0)))
    later = np.ma.concatenate([curve[first:] for curve in curves]) if curves else np.ma.array([])
    if later.count() < 4:
        return None
    low, high, peak = float(later.min()), float(later.max()), max(float(curve.max()) for curve in curves)
    room = (high - low) or 1e-3 * abs(high)
    if not room or peak <= high + 2.0 * room:
        return None
    return low - 0.1 * room, high + 0.25 * room


def _clip_beginning(axes: Axes) -> None:
    """Fit the y axis to what follows the first epochs, where these are far above it, and say how far."""
    curves = [
        np.ma.masked_invalid(line.get_ydata()) for line in axes.lines if line.get_label() in _PARTS.values()
    ]
    limits = later_limits(curves)
    if limits is None:
        return
    axes.set_ylim(*limits)
    peak = max(float(curve.max()) for curve in curves)
    axes.annotate(
        f"from {peak:.3g}",
        (1.0, 1.0),
        (-4, -2),
        xycoords="axes fraction",
        textcoords="offset points",
        ha="right",
        va="top",
        color=MUTED,
        size=8,
    )


def _looks(curves: Mapping[str, np.ndarray]):
    """Yield each curve with its colour and marker."""
    for number, item in enumerate(curves.items()):
        yield item, COLOURS[number % len(COLOURS)], _MARKERS[number % len(_MARKERS)]


def _line(axes: Axes, x: np.ndarray, y: np.ndarray, name: str, colour: str, marker: str) -> None:
    every = max(1, len(x) // 12)
    axes.plot(x, y, color=colour, marker=marker, markevery=every, label=plain(name) or None)


def _legend(axes: Axes, curves: Mapping[str, np.ndarray]) -> None:
    if "" not in curves:
        axes.legend(loc="best")


def _legend_of_all(figure: Figure) -> None:
    """One legend for panels that share their curves, below them."""
    handles: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=len(handles))


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):  # empty cells, and what a kill cut off
        return None
