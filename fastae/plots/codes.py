"""What codes look like: their values, and their map in two dimensions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from matplotlib import patheffects
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..activations import get_activation
from ..diagnostics import saturated
from .arrays import Values, as_array, as_labels, extent, spread
from .style import CLASS_COLOURS, COLOURS, GAP, INK, new_figure, percent, styled

_BINS = 40
_COLUMNS = 2
_FEWEST_FOR_TSNE = 10
_NAMED_CLASSES = 20


@styled
def code_histogram(
    codes: Sequence[Values], activations: Sequence[str], *, title: str = "Values of the codes"
) -> Figure:
    """One histogram a layer of all its codes' values, those of saturated units apart, and their share.

    Args:
        codes: [N, H] of each layer.
        activations: the name of each layer's.

    Raises:
        ValueError: no layers, other numbers of both, or codes that are not [N, H] and finite.
    """
    if not codes or len(codes) != len(activations):
        raise ValueError(
            f"codes: {len(codes)} layers for {len(activations)} activations; expected one or more"
        )
    columns = min(_COLUMNS, len(codes))
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
        axes.set_title(f"layer {number}: {values.shape[1]} {activation.replace('_', '-')} units")
        axes.set(xlabel="code h", ylabel="share of all codes", xlim=(low, high))
        axes.set_ylim(0.0, 1.5 * below.max())  # room for the legend above the bars
        axes.yaxis.set_major_locator(MaxNLocator(6))
        percent(axes.yaxis)
        if not get_activation(activation).needs_preactivation:
            axes.legend(title=f"saturated: {100 * flat.mean():.1f} %", loc="upper center", ncols=2)
    return figure


@styled
def code_map(
    codes: Values,
    labels: Values | None = None,
    *,
    method: Literal["pca", "tsne"] = "pca",
    limit: int = 3000,
    title: str = "Map of the codes",
) -> Figure:
    """Codes in two dimensions, coloured and named by label where there are labels.

    Codes of two units are drawn as they are. t-SNE keeps neighbours and gives distances no meaning (van der
    Maaten and Hinton 2008); fewer than ten rows, or equal ones, are drawn by PCA.

    Args:
        codes: [N, H].
        labels: whole numbers, [N].
        method: "pca" or "tsne", by scikit-learn; deterministic.
        limit: of the rows drawn, evenly spread.

    Raises:
        ValueError: codes or labels that do not fit, or another method.
    """
    values = as_array("codes", codes, 2)
    classes = as_labels(labels, len(values))
    if method not in ("pca", "tsne"):
        raise ValueError(f"method: {method!r} is not one of pca, tsne")
    chosen = spread(len(values), limit)
    places, names = _in_two_dimensions(values[chosen], method)
    figure = new_figure(title, 5.4)
    axes = figure.add_subplot()
    size = float(np.clip(6000 / len(chosen), 5, 30))
    if classes is None:
        axes.scatter(*places.T, s=size, color=COLOURS[0], alpha=0.7, linewidths=0)
    else:
        _draw_classes(axes, places, classes[chosen], size)
    axes.set(xlabel=names[0], ylabel=names[1])
    if method == "tsne" and names[0].startswith("t-SNE"):
        axes.set(xticks=[], yticks=[])  # the coordinates mean nothing
    axes.margins(0.04)
    return figure


def _saturated(values: np.ndarray, activation: str) -> np.ndarray:
    """Which codes are flat; unknown, and so none, where that takes the pre-activation."""
    if get_activation(activation).needs_preactivation:
        return np.zeros(values.shape, bool)
    return saturated(torch.from_numpy(values), activation).numpy()


def _in_two_dimensions(values: np.ndarray, method: str) -> tuple[np.ndarray, tuple[str, str]]:
    rows, units = values.shape
    if units == 1:
        return np.column_stack([values[:, 0], np.arange(rows)]), ("code of the only unit", "row")
    if units == 2:
        return values, ("code of unit 1", "code of unit 2")
    varied = bool(np.ptp(values, axis=0).any())
    if method == "tsne" and rows >= _FEWEST_FOR_TSNE and varied:
        from sklearn.manifold import TSNE

        perplexity = min(30.0, (rows - 1) / 3)
        tsne = TSNE(init="pca", perplexity=perplexity, random_state=0)
        names = tuple(f"t-SNE {axis} (perplexity {perplexity:.0f}, no unit)" for axis in (1, 2))
        return tsne.fit_transform(values.astype(np.float32)), names  # pyright: ignore[reportReturnType]
    if not varied:
        return np.zeros((rows, 2)), ("PCA 1 (all codes are equal)", "PCA 2")
    from sklearn.decomposition import PCA

    count = min(2, rows)
    pca = PCA(count, svd_solver="full")
    places = np.zeros((rows, 2))
    places[:, :count] = pca.fit_transform(values)
    shares = [*pca.explained_variance_ratio_, 0.0][:2]
    return places, tuple(
        f"PCA {axis} ({100 * share:.0f} % of the codes' variance)" for axis, share in enumerate(shares, 1)
    )  # pyright: ignore[reportReturnType]


def _draw_classes(axes, places: np.ndarray, classes: np.ndarray, size: float) -> None:
    """Points by class; the largest classes have a colour, and their number at a member in their middle."""
    found, counts = np.unique(classes, return_counts=True)
    named = np.sort(found[np.argsort(-counts, kind="stable")[:_NAMED_CLASSES]])
    rest = ~np.isin(classes, named)
    if rest.any():
        axes.scatter(*places[rest].T, s=size, color=GAP, linewidths=0, label="others")
    for number, label in enumerate(named):
        members = places[classes == label]
        colour = CLASS_COLOURS[number % len(CLASS_COLOURS)]
        marker = "o^"[number // len(CLASS_COLOURS)]
        axes.scatter(
            *members.T, s=size, color=colour, marker=marker, alpha=0.75, linewidths=0, label=str(label)
        )
    for label in named:
        members = places[classes == label]
        middle = np.median(members, axis=0)
        place = members[np.square(members - middle).sum(1).argmin()]  # a class of two heaps has no middle
        axes.text(
            *place, str(label), color=INK, weight="bold", size=11, ha="center", va="center",
            path_effects=[patheffects.withStroke(linewidth=3, foreground="white")],
        )  # fmt: skip
    axes.legend(
        title="label", loc="center left", bbox_to_anchor=(1.0, 0.5), markerscale=max(1.0, (24 / size) ** 0.5),
        handletextpad=0.1,
    )  # fmt: skip
