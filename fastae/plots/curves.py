"""Curves: losses over epochs, the spectrum of the encoder's Jacobian, contraction over distances."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .arrays import Values, as_array, as_curves
from .style import COLOURS, new_figure, styled

_PARTS = {"train": "training", "validation": "validation"}
_UNITS = {
    "total": "weighted sum,\nmean over rows",
    "reconstruction": "sum over features,\nmean over rows",
    "contractive": "‖∂h/∂x‖²,\nmean over rows",
    "higher_order": "E‖J(x) - J(x + e)‖²,\nmean over rows",
    "l1": "Σ|h|,\nmean over rows",
    "kl": "KL, sum over units",
    "error": "share of rows, %",
}
_COLUMNS = 3
_MARKERS = "os^Dv<>"


@styled
def learning_curves(history: Sequence[Mapping[str, Any]], *, title: str = "Learning curves") -> Figure:
    """One panel for each stage and term, over epochs: training and, where there is one, validation.

    Terms come without their weights, the total with them; a total that is its only term is left out.

    Args:
        history: rows of a run's ``history`` or of its log.csv (numbers may be text; empty is missing).

    Raises:
        ValueError: there is no finite value of any term.
    """
    panels: dict[tuple[str, str], dict[str, list[tuple[float, float]]]] = {}
    for row in history:
        for term in _UNITS:
            for part in _PARTS:
                value = _number(row.get(f"{part}_{term}"))
                if math.isfinite(value):
                    curves = panels.setdefault((str(row["stage"]), term), {})
                    curves.setdefault(part, []).append((float(row["epoch"]), value))
    stages = {stage: [term for name, term in panels if name == stage] for stage, _ in panels}
    shown = [
        (stage, term) for stage, terms in stages.items() for term in _UNITS
        if term in terms and not (term == "total" and set(terms) == {"total", "reconstruction"})
    ]  # fmt: skip
    if not shown:
        raise ValueError(f"history: no finite value in {len(history)} rows")
    columns = 2 if len(shown) == 4 else min(_COLUMNS, len(shown))
    rows = math.ceil(len(shown) / columns)
    figure = new_figure(title, 0.95 + 1.95 * rows)
    for number, (stage, term) in enumerate(shown, 1):
        axes = figure.add_subplot(rows, columns, number)
        for part, colour, line in zip(_PARTS, COLOURS, ("-", "--"), strict=False):
            if part in panels[stage, term]:
                epochs, values = np.array(panels[stage, term][part]).T
                values = 100 * values if term == "error" else values
                marker = "o" if len(values) < 8 else ""
                axes.plot(epochs, values, line, color=colour, marker=marker, label=_PARTS[part])
        axes.set_title(f"{stage}: {term.replace('_', '-')}")
        supervised = "error" in stages[stage] and term == "total"
        axes.set(xlabel="epoch", ylabel="cross-entropy,\nmean over rows" if supervised else _UNITS[term])
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 5, 10]))
        axes.yaxis.set_major_locator(MaxNLocator(5))
    _legend_of_all(figure)
    return figure


@styled
def spectrum(
    values: Values | Mapping[str, Values], *, title: str = "Singular values of the encoder's Jacobian"
) -> Figure:
    """Singular values of dh/dx, largest first, on a logarithmic scale where they are positive.

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
    largest = max(curve.max() for curve in curves.values())
    floor = largest * 1e-6  # what is below is rounding, or a dead unit
    for (name, curve), colour, marker in _looks(curves):
        kept = np.where(curve > floor, curve, np.nan) if largest > 0.0 else curve
        _line(axes, np.arange(1, len(curve) + 1), kept, name, colour, marker)
    if largest > 0.0:
        axes.set_yscale("log")
    axes.set(xlabel="number, largest first", ylabel="singular value of ∂h/∂x,\nmean over rows")
    axes.xaxis.set_major_locator(MaxNLocator(10, integer=True))
    _legend(axes, curves)
    return figure


@styled
def contraction(
    radii: Values, ratios: Values | Mapping[str, Values], *, title: str = "Contraction around the data"
) -> Figure:
    """How the code's distances compare with the input's, over the input's distance.

    Args:
        radii: distances ||e|| from a row, [R], positive.
        ratios: mean of ||h(x + e) - h(x)|| / ||e|| over rows and directions, [R]; several by name.

    Raises:
        ValueError: lengths that differ, values that are not finite, radii that are not positive.
    """
    distances = as_array("radii", radii, 1)
    if distances.min() <= 0.0:
        raise ValueError(f"radii: must be positive, got {distances.min():g}")
    curves = as_curves("ratios", ratios)
    figure = new_figure(title, 3.4)
    axes = figure.add_subplot()
    for (name, curve), colour, marker in _looks(curves):
        if len(curve) != len(distances):
            raise ValueError(f"ratios {name}".strip() + f": {len(curve)} values for {len(distances)} radii")
        _line(axes, distances, curve, name, colour, marker)
    if distances.max() > 8 * distances.min():
        axes.set_xscale("log")
    axes.set_ylim(bottom=0.0)
    axes.set(xlabel="distance ‖e‖ in the input's units", ylabel="‖h(x + e) - h(x)‖ / ‖e‖,\nmean over rows")
    _legend(axes, curves)
    return figure


def _looks(curves: Mapping[str, np.ndarray]):
    """Each curve with a colour and a marker of its own."""
    for number, item in enumerate(curves.items()):
        yield item, COLOURS[number % len(COLOURS)], _MARKERS[number % len(_MARKERS)]


def _line(axes: Axes, x: np.ndarray, y: np.ndarray, name: str, colour: str, marker: str) -> None:
    every = max(1, len(x) // 12)
    axes.plot(x, y, color=colour, marker=marker, markevery=every, label=name or None)


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


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):  # empty cells, and what a kill cut off
        return math.nan
