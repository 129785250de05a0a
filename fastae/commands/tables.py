"""What an evaluation's figures are called and how they are written: in tables, on a page, in JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table


def summary_cells(figures: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Name and value of what :func:`fastae.train.evaluate` found about the whole model."""
    cells = [
        (f"reconstruction ({figures['loss']}, sum over features)", f"{figures['reconstruction']:.4f}"),
        ("mean squared error of a feature", f"{figures['mse']:.6f}"),
        ("contractive penalty ‖∂h/∂x‖² of the encoder", f"{figures['contractive_penalty']:.4f}"),
    ]
    r2 = figures.get("r2", math.nan)
    worse = ", worse than the mean of the rows" if r2 < 0.0 else ""
    cells.insert(2, ("R^2: share of the variance reconstructed", f"{r2:.4f}{worse}"))
    if "pca_mse" in figures:
        units = figures["layers"][-1]["units"]
        cells.insert(3, (f"squared error of PCA with {units} components", f"{figures['pca_mse']:.6f}"))
        needed = f"{figures['pca_components']} components"
        cells.insert(4, ("PCA needs, for as small an error", needed))
    for key in ("probe_error", "classifier_error"):
        if key in figures:
            cells.append((key.replace("_", " "), f"{100 * figures[key]:.2f} %"))
    return cells


def layer_cells(layers: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """For each layer its cells by the columns' names."""
    return [
        {
            "layer": str(number),
            "units": str(layer["units"]),
            "loss": f"{layer['reconstruction']:.2f} {layer['loss']}",
            "penalty": f"{layer['contractive_penalty']:.3f}",
            "slope²": f"{layer['mean_squared_slope']:.4f}",
            "norm²": f"{layer['mean_squared_norm']:.3f}",
            "mean code": f"{layer['mean_activation']:.3f}",
            "sparsity": f"{layer['mean_sparsity']:.3f}",
            "saturated": f"{100 * layer['saturated_share']:.1f} %",
            "dead": str(layer["dead_units"]),
        }
        for number, layer in enumerate(layers, 1)
    ]


def print_figures(console: Console, figures: Mapping[str, Any], title: str) -> None:
    """Print what :func:`fastae.train.evaluation.evaluate` found."""
    summary = Table(
        "", "", show_header=False, box=SIMPLE, title=f"{title}: {figures['rows']} rows", title_justify="left"
    )
    for cells in summary_cells(figures):
        summary.add_row(*cells)
    console.print(summary, highlight=False)
    columns = ("layer", "units", "loss", "penalty", "slope²", "norm²", "saturated", "dead")
    layers = Table(*columns, box=SIMPLE)
    for cells in layer_cells(figures["layers"]):
        layers.add_row(*(cells[column] for column in columns))
    console.print(layers, highlight=False)


def as_json(figures: Any) -> str:
    """Figures as strict JSON, which has no NaN and no infinity: they become null."""
    return json.dumps(_finite(figures), indent=2, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
