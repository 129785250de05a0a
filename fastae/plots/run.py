"""The pictures of a trained stack, and the words that go with them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from .. import diagnostics, functional
from ..losses import get_loss
from ..nn import StackedAutoencoder
from .arrays import ImageShape, image_shape, spread
from .codes import Projection, code_histogram, code_map, project
from .curves import contraction, learning_curves, spectrum
from .field import vector_field_2d
from .table import Inverse
from .tiles import errors, filters, reconstructions, tangent_tiles

if TYPE_CHECKING:
    from ..train.data import AffineScaling

_JACOBIAN_ROWS = 64  # at most, that a spectrum averages over
_JACOBIAN_EFFORT = 1 << 32  # of the decompositions of a picture: a few seconds, unless one row needs more
_TILES, _POINTS, _DIRECTIONS = 14, 6, 8


class Drawing(NamedTuple):
    """A picture of a run: the name of its file, the words that go with it, and ``draw``, which makes it.

    ``draw`` makes a figure of the width that is set by :func:`fastae.plots.style.figures_of`.
    """

    name: str
    title: str
    caption: str
    alt: str
    draw: Callable[[], Figure]

    @property
    def figure(self) -> Figure:
        """The figure, drawn anew."""
        return self.draw()


@dataclass(frozen=True)
class Subject:
    """A trained stack and the rows it is drawn on.

    Attributes:
        stack: the autoencoders, in evaluation mode.
        x: rows [N, D], as the stack takes them.
        labels: of the rows, [N], or None.
        shape: shape of one row, as (28, 28).
        history: the rows of the run's log; may be empty.
        projection: "tsne" or "pca", for the map of the codes.
        feature_names: of the columns, [D], where the rows are those of a table.
        class_names: of the labels 0, 1, ..., where they have names.
        scaling: of the data, to draw a table in its own units.
        figures: the evaluation's, for headings.
    """

    stack: StackedAutoencoder
    x: Tensor
    labels: np.ndarray | None
    shape: Sequence[int]
    history: Sequence[Mapping[str, Any]]
    projection: Literal["tsne", "pca"]
    feature_names: Sequence[str] | None = None
    class_names: Sequence[str] | None = None
    scaling: AffineScaling | None = None
    figures: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def form(self) -> ImageShape | None:
        """The layout of rows as images; ``None`` for a table."""
        return None if self.feature_names else image_shape(self.x.shape[1], self.shape)

    @property
    def inverse(self) -> Inverse | None:
        """The way to a table's own units, where it differs between columns."""
        if self.form is not None or self.scaling is None or self.scaling.width is None:
            return None
        return self.scaling.inverse

    def drawn(self, rows: Tensor) -> np.ndarray:
        """Rows [N, D] as they are drawn: a table's in its own units, where all columns share their scale."""
        values = rows.detach().cpu().double().numpy()
        if self.form is None and self.scaling is not None and self.scaling.width is None:
            return self.scaling.inverse(values)
        return values

    @property
    def form_options(self) -> dict[str, Any]:
        """Options of the pictures of rows."""
        return {"shape": self.shape, "names": self.feature_names}

    @cached_property
    def reconstructed(self) -> Tensor:
        """The reconstruction of each row, [N, D]."""
        with torch.no_grad():
            return self.stack.reconstruct(self.x)

    @cached_property
    def errors(self) -> Tensor:
        """The loss of each row, [N], above its least value."""
        return diagnostics.reconstruction_errors(self.stack, self.x, excess=True)[0]

    @cached_property
    def map(self) -> Projection:
        """The last layer's codes in two dimensions."""
        return project(self.codes[-1], self.projection)

    @cached_property
    def codes(self) -> list[Tensor]:
        """The code of each layer, [N, H]."""
        with torch.no_grad():
            return [self.stack.encode(self.x, depth) for depth in range(1, len(self.stack.layers) + 1)]

    @property
    def encoders(self) -> dict[str, nn.Sequential]:
        """The encoder up to each layer, by name."""
        modules = [layer.encoder for layer in self.stack.autoencoders]
        names = ["layer 1", *(f"layers 1 to {depth}" for depth in range(2, len(modules) + 1))]
        return {name: nn.Sequential(*modules[:depth]) for depth, name in enumerate(names, 1)}

    def generator(self) -> torch.Generator:
        """Noise that is the same for every drawing."""
        return torch.Generator(self.x.device).manual_seed(0)


def draw(subject: Subject) -> Iterator[Drawing]:
    """Every picture that there is something for, in the order of a page."""
    if (curves := _learning_curves(subject)) is not None:
        yield curves
    yield _reconstructions(subject)
    yield from _filters(subject)
    yield _codes(subject)
    yield _code_map(subject)
    yield _spectrum(subject)
    yield _contraction(subject)
    yield _tangents(subject)
    yield _errors(subject)
    if subject.stack.sizes[0] == 2:
        yield _vector_field(subject)


def _learning_curves(subject: Subject) -> Drawing | None:
    try:
        learning_curves(subject.history)
    except ValueError:  # nothing in the log yet
        return None
    stages = ", ".join(dict.fromkeys(str(row["stage"]) for row in subject.history))
    return Drawing(
        "learning-curves",
        "Learning curves",
        "Every term of every stage over epochs, without its weight. Training terms are means over the epoch, "
        "with its noise, while the parameters move; validation terms are taken at its end.",
        f"Curves over epochs of these stages: {stages}.",
        lambda: learning_curves(subject.history),
    )


def _reconstructions(subject: Subject) -> Drawing:
    x = subject.x[spread(len(subject.x), _TILES)]
    corruption = subject.stack.autoencoders[0].options.corruption
    noise = "" if corruption is None else f", corrupted by {corruption},"
    with torch.no_grad():
        seen = functional.corrupt(x, corruption, generator=subject.generator())
        reconstructed = subject.stack.reconstruct(seen)
    clean, corrupted, made = map(subject.drawn, (x, seen, reconstructed))
    units = ""
    if subject.inverse is not None:
        units = " Dots are scaled values, in which features compare; numbers are in the data's own units."
    return Drawing(
        "reconstructions",
        "Reconstructions",
        f"Rows{noise} and what all layers together make of them.{units}",
        f"{_rows(len(x))}{noise} and their reconstructions.",
        lambda: reconstructions(
            clean,
            made,
            None if corruption is None else corrupted,
            inverse=subject.inverse,
            **subject.form_options,
        ),
    )


def input_weights(subject: Subject) -> Iterator[Tensor]:
    """The weights of each layer's units over the input, [H, D]: what they would be without activations."""
    seen = None
    for layer in subject.stack.autoencoders:
        weight = layer.encoder.weight.detach()
        seen = weight if seen is None else weight @ seen
        yield seen


def _filters(subject: Subject) -> Iterator[Drawing]:
    form = subject.form
    colour = " (red) or inactive (blue)" if form is None or form.channels == 1 else ""
    for number, (seen, code) in enumerate(zip(input_weights(subject), subject.codes, strict=True), 1):
        title, how = f"Filters of layer {number}", ""
        if number > 1:
            title += ", through those below"
            how = " Each is the sum of the filters below, weighted by the unit's weights."
        usage = code.std(0, correction=0)
        yield Drawing(
            f"filters-{number}",
            title,
            f"Weights over the input that make a unit of layer {number} active{colour}; the units whose "
            f"codes vary most come first.{how}",
            f"Weights of layer {number}'s units over the input, one {'strip' if form is None else 'tile'} "
            "per unit.",
            partial(filters, seen, usage=usage, title=title, **subject.form_options),
        )


def _codes(subject: Subject) -> Drawing:
    activations = [layer.options.activation for layer in subject.stack.autoencoders]
    means = ", ".join(f"{float(code.mean()):.2g}" for code in subject.codes)
    return Drawing(
        "codes",
        "Values of the codes",
        f"All codes of {_rows(len(subject.x))}. Saturated ones, whose slope is at most 0.19 of that at 0, "
        "hardly move with the input.",
        f"Histograms of the codes of each layer, whose means are {means}.",
        lambda: code_histogram(subject.codes, activations),
    )


def _code_map(subject: Subject) -> Drawing:
    by = "" if subject.labels is None else ", coloured by label"
    how = "The two directions of largest variance."
    if not subject.map.has_units:
        how = "t-SNE keeps neighbours together; distances between groups mean little."
    elif subject.codes[-1].shape[1] <= 2:
        how = "The codes themselves."
    if subject.labels is not None:
        how += " A class is named beside its points, or in the legend where there is no room."
    return Drawing(
        "code-map",
        "Map of the codes",
        f"The last layer's codes of {_rows(len(subject.x))}{by}. {how}",
        f"Scatter plot of {len(subject.x)} codes{by}.",
        lambda: code_map(subject.map, subject.labels, names=subject.class_names),
    )


def _spectrum(subject: Subject) -> Drawing:
    sizes = subject.stack.sizes
    effort = sum(_effort(sizes[: depth + 1]) for depth in range(1, len(sizes)))
    x = subject.x[spread(len(subject.x), max(1, min(_JACOBIAN_ROWS, _JACOBIAN_EFFORT // effort)))]
    values = {name: diagnostics.jacobian_spectrum(encoder, x) for name, encoder in subject.encoders.items()}
    largest = ", ".join(f"{float(curve[0]):.3g}" for curve in values.values())
    return Drawing(
        "spectrum",
        "Spectrum of the Jacobian",
        f"Singular values of ∂h/∂x, means over {_rows(len(x))}; each row's own, squared, sum to its "
        "contractive penalty. Where they fall fast, the code follows few directions and ignores the others.",
        f"Falling curves, one for each depth; the largest values are {largest}.",
        lambda: spectrum(values),
    )


def _effort(sizes: Sequence[int]) -> int:
    """Of decomposing the Jacobian of one row."""
    return min(sizes) ** 2 * max(sizes)


def _rows(count: int) -> str:
    return f"{count} row{'s' * (count != 1)}"


def _contraction(subject: Subject) -> Drawing:
    x = subject.x
    size = float((x - x.mean(0)).square().sum(1).mean().sqrt()) or 1.0
    radii = np.geomspace(0.02, 2.0, 13) * size
    ratios = {
        name: diagnostics.contraction_curve(encoder, x, radii.tolist(), generator=subject.generator())
        for name, encoder in subject.encoders.items()
    }
    return Drawing(
        "contraction",
        "Contraction around the rows",
        "Distance of the code from its place when a row moves by ‖e‖ at random. The rows' own root mean "
        f"square distance from their mean is {size:.3g}.",
        "The ratio of distances between codes and between inputs, over the inputs' distance.",
        lambda: contraction(radii, ratios),
    )


def _tangents(subject: Subject) -> Drawing:
    limit = max(1, min(_POINTS, _JACOBIAN_EFFORT // _effort(subject.stack.sizes)))
    x = subject.x[spread(len(subject.x), limit)]
    directions, _ = diagnostics.tangents(subject.stack, x, min(_DIRECTIONS, *subject.stack.sizes))
    return Drawing(
        "tangents",
        "Directions that the code follows",
        "Leading right singular vectors of ∂h/∂x of the whole encoder: the ways in which a row can move and "
        "be noticed. Their sign has no meaning.",
        f"{_rows(len(x))} beside their {directions.shape[1]} most sensitive directions.",
        lambda: tangent_tiles(x, directions, **subject.form_options),
    )


def yardstick(figures: Mapping[str, Any]) -> str:
    """R² and mse of an evaluation's reconstructions, beside the mse of PCA with as many components."""
    parts = []
    if figures.get("r2") is not None:
        parts.append(f"R² {figures['r2']:.3f}")
    if figures.get("pca_mse") is not None:
        parts.append(f"mse {figures['mse']:.3g} (PCA {figures['pca_mse']:.3g})")
    return ", ".join(parts)


def _errors(subject: Subject) -> Drawing:
    loss = subject.stack.autoencoders[0].options.loss
    unit, kind = loss, "The error"
    if get_loss(loss).least is not None:
        unit, kind = f"{loss} above its least value", "The loss, less that of a perfect reconstruction,"
    return Drawing(
        "errors",
        "Reconstruction error per row",
        f"{kind} of clean rows as an anomaly score: those on the right are unlike the training data.",
        f"Histogram of {len(subject.x)} errors above the rows that are reconstructed best and worst.",
        lambda: errors(
            subject.errors,
            subject.drawn(subject.x),
            subject.drawn(subject.reconstructed),
            inverse=subject.inverse,
            unit=f"{unit}, sum over features",
            note=yardstick(subject.figures),
            **subject.form_options,
        ),
    )


def _vector_field(subject: Subject) -> Drawing:
    return Drawing(
        "vector-field",
        "Where the reconstruction moves each point",
        "Arrows of r(x) - x on a grid, with the rows. A denoising autoencoder points to where data lie.",
        "Arrows over the plane of the two features.",
        lambda: vector_field_2d(subject.x, subject.stack),
    )
