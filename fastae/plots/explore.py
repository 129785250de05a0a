"""Data of a report's interactive parts, as JSON holds them; ``explore.js`` reads them."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.image import imsave

from .arrays import ImageShape, montage_size, spread
from .curves import later_limits, panels_of
from .run import Subject, input_weights
from .style import SIGNED
from .table import Columns, features_of
from .tiles import symmetric_scale

_ROWS = 2000  # points of the map
_UNITS = 128  # per layer
_VALUES = 1_500_000  # of all tiles of one kind
_WEIGHTS = 8  # features that tell of a table's unit


def explore(subject: Subject, numbers: Sequence[int] | np.ndarray) -> dict[str, Any]:
    """Rows, their map, units by layer and learning curves.

    Args:
        subject: what the report draws.
        numbers: of the rows in their data set, [N].

    Returns:
        ``rows``: number, error and label of each, the labels' ``names``, and the rows and reconstructions as
        ``tiles`` or, of a table, as ``values`` of the features furthest from their mean; ``map``: x, y and
        the axes' names; ``layers``: for each the numbers of its most used units, their codes in 256 steps
        between ``low`` and ``high``, and their weights over the input; ``curves``: of each term and
        stage, with ``limits`` of the axis where the first epochs are far above the others.
    """
    kept = spread(len(subject.x), _ROWS)
    projection = subject.map
    return {
        "rows": _rows(subject, kept, np.asarray(numbers)),
        "map": {
            "x": _rounded(projection.places[kept, 0]),
            "y": _rounded(projection.places[kept, 1]),
            "axes": projection.axes,
            "units": projection.has_units,
        },
        "layers": [
            _layer(subject, number, code[kept].detach().cpu().double().numpy(), weight.cpu().double().numpy())
            for number, (code, weight) in enumerate(
                zip(subject.codes, input_weights(subject), strict=True), 1
            )
        ],
        "curves": _curves(subject),
    }


def _rows(subject: Subject, kept: np.ndarray, numbers: np.ndarray) -> dict[str, Any]:
    x, reconstructed = subject.drawn(subject.x[kept]), subject.drawn(subject.reconstructed[kept])
    labels = None if subject.labels is None else np.asarray(subject.labels)[kept].tolist()
    found = sorted(set(labels or []))
    names = {
        label: str(label if subject.class_names is None else subject.class_names[label]) for label in found
    }
    rows: dict[str, Any] = {
        "numbers": numbers[kept].tolist(),
        "errors": _rounded(subject.errors[kept].cpu().numpy()),
        "labels": labels,
        "names": names,
    }
    if subject.form is not None:
        low, high = float(x.min()), float(x.max())
        rows["tiles"] = _tiles(subject.form, [x, reconstructed], "Greys", low, high)
        return rows
    columns, mean = Columns(subject.feature_names, subject.inverse), x.mean(0)
    own, own_made = columns.own(x), columns.own(reconstructed)
    rows["features"] = [columns.label(number) for number in range(x.shape[1])]
    rows["values"] = [
        [[int(n), _digits(own[row, n]), _digits(own_made[row, n])] for n in features_of(values, mean)]
        for row, values in enumerate(x)
    ]
    return rows


def _layer(subject: Subject, number: int, codes: np.ndarray, weight: np.ndarray) -> dict[str, Any]:
    """Units of a layer from its codes [N, H] and weights over the input [H, D]."""
    used = np.argsort(-codes.std(0), kind="stable")[:_UNITS]
    codes, weight = codes[:, used], weight[used]
    low, high = codes.min(0), codes.max(0)
    steps = np.rint(255.0 * (codes - low) / np.where(high > low, high - low, 1.0)).astype(np.uint8)
    layer: dict[str, Any] = {
        "name": f"layer {number}",
        "total": int(subject.codes[number - 1].shape[1]),
        "units": (used + 1).tolist(),
        "low": _rounded(low),
        "high": _rounded(high),
        "mean": _rounded(codes.mean(0)),
        "codes": base64.b64encode(steps.T.tobytes()).decode("ascii"),
    }
    if subject.form is not None:
        scale = symmetric_scale(weight)
        layer["tiles"] = _tiles(subject.form, [weight], SIGNED, -scale, scale)
    else:
        largest = np.argsort(-np.abs(weight), axis=1, kind="stable")[:, :_WEIGHTS]
        layer["weights"] = [
            [[int(n), _digits(weight[unit, n])] for n in features] for unit, features in enumerate(largest)
        ]
    return layer


def _curves(subject: Subject) -> list[dict[str, Any]]:
    try:
        panels = panels_of(subject.history)
    except ValueError:  # nothing in the log yet
        return []
    return [
        {
            "name": panel.name,
            "unit": panel.unit,
            "limits": later_limits([np.ma.masked_invalid(y) for _, y in panel.curves.values()]),
            "parts": {part: [_rounded(x), _rounded(y)] for part, (x, y) in panel.curves.items()},
        }
        for panel in panels
    ]


def _tiles(
    form: ImageShape, kinds: Sequence[np.ndarray], cmap: str, low: float, high: float
) -> dict[str, Any]:
    """Sheets of tiles, one for each of ``kinds`` [N, D], all in the same places."""
    images = [form.images(rows, _VALUES) for rows in kinds]
    count, height, width = images[0].shape[:3]
    columns = montage_size(count, height, width)
    sheets = [_sheet(image, columns, cmap, low, high) for image in images]
    return {
        "sheets": sheets,
        "columns": columns,
        "lines": math.ceil(count / columns),
        "width": width,
        "height": height,
        "photo": form.channels == 3,
    }


def _sheet(images: np.ndarray, columns: int, cmap: str, low: float, high: float) -> str:
    """Images [N, h, w(, 3)] beside and below each other without gaps, as the address of a PNG."""
    count, height, width = images.shape[:3]
    lines = math.ceil(count / columns)
    sheet = np.full((lines * columns, height, width, *images.shape[3:]), low)
    sheet[:count] = images
    sheet = sheet.reshape(lines, columns, *sheet.shape[1:]).swapaxes(1, 2)
    sheet = sheet.reshape(lines * height, columns * width, *images.shape[3:])
    if images.ndim == 4:
        sheet = np.clip((sheet - low) / ((high - low) or 1.0), 0.0, 1.0)
    buffer = io.BytesIO()
    undated: Any = {"Software": None}
    imsave(buffer, sheet, vmin=low, vmax=high, cmap=cmap, format="png", metadata=undated)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def _digits(value: float) -> float:
    return float(f"{value:.4g}")


def _rounded(values: np.ndarray) -> list[float | None]:
    """Four significant digits of each; what is not finite is null."""
    return [_digits(value) if math.isfinite(value) else None for value in values.tolist()]
