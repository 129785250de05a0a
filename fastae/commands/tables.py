"""Figures of an evaluation: their names and formats in tables, on a page and in JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..console import Console, print_table
from ..losses import get_loss

LAYER_NOTES = (
    "loss: reconstruction of the layer's own input; as above, the sum over features\n"
    "penalty: squared norm of the code's Jacobian\n"
    "saturated: share of codes where the activation is almost flat\n"
    "dead: units whose codes differ by less than 0.001"
)
"""Explains the columns of the layers that are shown on a console."""

_LAYER_COLUMNS = ("layer", "units", "loss", "penalty", "saturated", "dead")


def summary_cells(figures: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Name and value of what :func:`fastae.train.evaluation.evaluate` found about the whole model."""
    loss, above = _loss_above_least(figures)
    cells = [(f"reconstruction: {loss}", f"{above:.4f}")]
    if not get_loss(figures["loss"]).of_rows:
        r2 = figures.get("r2", math.nan)
        worse = ", worse than the mean of the rows" if r2 < 0.0 else ""
        cells.append(("reconstruction: squared error per feature", f"{figures['mse']:.6f}"))
        cells.append(("R^2: share of the variance reconstructed", f"{r2:.4f}{worse}"))
    if "pca_mse" in figures:
        units = figures["layers"][-1]["units"]
        cells.append((f"PCA of {units} components: squared error", f"{figures['pca_mse']:.6f}"))
        needed = f"{figures['pca_components']} components"
        cells.append(("PCA needs, for as small an error", needed))
    cells.append(("squared norm of the code's Jacobian", f"{figures['contractive_penalty']:.4f}"))
    for key, name in (("probe_error", "linear probe error"), ("classifier_error", "classifier error")):
        if key in figures:
            cells.append((name, f"{100 * figures[key]:.2f} %"))
    return cells


def layer_cells(layers: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """For each layer its cells by the names of the columns."""
    return [
        {
            "layer": str(number),
            "units": str(layer["units"]),
            "loss": f"{_loss_above_least(layer)[1]:.3f} {layer['loss']}",
            "penalty": f"{layer['contractive_penalty']:.3f}",
            "mean slope\u00b2": f"{layer['mean_squared_slope']:.4f}",
            "mean \u2016w\u2016\u00b2": f"{layer['mean_squared_norm']:.3f}",
            "mean code": f"{layer['mean_activation']:.3f}",
            "sparsity": f"{layer['mean_sparsity']:.3f}",
            "saturated": f"{100 * layer['saturated_share']:.1f} %",
            "dead": str(layer["dead_units"]),
        }
        for number, layer in enumerate(layers, 1)
    ]


def _loss_above_least(figures: Mapping[str, Any]) -> tuple[str, float]:
    """Name of a reconstruction loss, and its excess over the least possible value.

    The least value of a likelihood says nothing of the model, and is large beside the rest.
    """
    name = figures["loss"]
    if get_loss(name).least is not None:
        name = f"{name} above its least value"
    return name, figures["reconstruction"] - figures["least_reconstruction"]


def print_figures(console: Console, figures: Mapping[str, Any], title: str) -> None:
    """Print what :func:`fastae.train.evaluation.evaluate` found."""
    print_table(console, summary_cells(figures), title=f"{title}: {figures['rows']} rows")
    cells = [[layer[column] for column in _LAYER_COLUMNS] for layer in layer_cells(figures["layers"])]
    print_table(console, cells, _LAYER_COLUMNS)
    console.print(LAYER_NOTES, style="dim", soft_wrap=False)


def as_json(figures: Any) -> str:
    """Figures as strict JSON, which has no NaN and no infinity: they become null."""
    return json.dumps(_finite(figures), indent=2, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
