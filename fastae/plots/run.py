"""Which pictures a trained stack gets, and the words that go with them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from .. import diagnostics, functional
from ..nn import StackedAutoencoder
from .arrays import image_shape, spread
from .codes import code_histogram, code_map
from .curves import contraction, learning_curves, spectrum
from .field import vector_field_2d
from .tiles import errors, filters, reconstructions, tangent_tiles

_JACOBIAN_ROWS = 64  # at most, that a spectrum averages over
_JACOBIAN_EFFORT = 1 << 32  # of the decompositions of a picture: a few seconds, unless one row needs more
_TILES, _POINTS, _DIRECTIONS = 14, 6, 8


class Drawing(NamedTuple):
    """A figure with its file's name and the words that go with it."""

    name: str
    title: str
    caption: str
    alt: str
    figure: Figure


@dataclass(frozen=True)
class Subject:
    """A trained stack and what it is drawn on.

    Attributes:
        stack: the autoencoders, in evaluation mode.
        x: rows [N, D], as the stack takes them.
        labels: of the rows, [N], or None.
        shape: of one row, as (28, 28).
        history: the rows of the run's log; may be empty.
        projection: "tsne" or "pca", for the map of the codes.
    """

    stack: StackedAutoencoder
    x: Tensor
    labels: np.ndarray | None
    shape: Sequence[int]
    history: Sequence[Mapping[str, Any]]
    projection: Literal["tsne", "pca"]

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
        figure = learning_curves(subject.history)
    except ValueError:  # nothing in the log yet
        return None
    stages = ", ".join(dict.fromkeys(str(row["stage"]) for row in subject.history))
    return Drawing(
        "learning-curves",
        "Learning curves",
        "Every term of every stage over epochs, without its weight. Training terms are means over the epoch, "
        "with its noise, while the parameters move; validation terms are taken at its end.",
        f"Curves over epochs of these stages: {stages}.",
        figure,
    )


def _reconstructions(subject: Subject) -> Drawing:
    x = subject.x[spread(len(subject.x), _TILES)]
    corruption = subject.stack.autoencoders[0].options.corruption
    noise = "" if corruption is None else f", corrupted by {corruption},"
    with torch.no_grad():
        seen = functional.corrupt(x, corruption, generator=subject.generator())
        reconstructed = subject.stack.reconstruct(seen)
    return Drawing(
        "reconstructions",
        "Reconstructions",
        f"Rows{noise} and what all layers together make of them.",
        f"{_rows(len(x))}{noise} and their reconstructions.",
        reconstructions(x, reconstructed, None if corruption is None else seen, shape=subject.shape),
    )


def _filters(subject: Subject) -> Iterator[Drawing]:
    form = image_shape(subject.x.shape[1], subject.shape)
    colour = " (red) or inactive (blue)" if form is None or form.channels == 1 else ""
    seen = None
    for number, (layer, code) in enumerate(zip(subject.stack.autoencoders, subject.codes, strict=True), 1):
        weight = layer.encoder.weight.detach()
        seen = weight if seen is None else weight @ seen  # what units would see if those below were linear
        title, how = f"Filters of layer {number}", ""
        if number > 1:
            title += ", through those below"
            how = " Each is the sum of the filters below, weighted by the unit's weights."
        yield Drawing(
            f"filters-{number}",
            title,
            f"What makes a unit of layer {number} active{colour}; the units whose codes vary most come "
            f"first.{how}",
            f"Weights of layer {number}'s units over the input, one tile a unit.",
            filters(seen, shape=subject.shape, usage=code.std(0, correction=0), title=title),
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
        code_histogram(subject.codes, activations),
    )


def _code_map(subject: Subject) -> Drawing:
    by = "" if subject.labels is None else ", coloured by label"
    how = {
        "tsne": "t-SNE keeps neighbours together; distances between groups mean little.",
        "pca": "The two directions of largest variance.",
    }[subject.projection]
    return Drawing(
        "code-map",
        "Map of the codes",
        f"The last layer's codes of {_rows(len(subject.x))}{by}. {how}",
        f"Scatter plot of {len(subject.x)} codes{by}.",
        code_map(subject.codes[-1], subject.labels, method=subject.projection),
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
        spectrum(values),
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
        "How far the code moves when a row moves by ‖e‖ in a random direction. The rows' own root mean "
        f"square distance from their mean is {size:.3g}.",
        "The ratio of distances between codes and between inputs, over the inputs' distance.",
        contraction(radii, ratios),
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
        tangent_tiles(x, directions, shape=subject.shape),
    )


def _errors(subject: Subject) -> Drawing:
    scores, _ = diagnostics.reconstruction_errors(subject.stack, subject.x, excess=True)
    with torch.no_grad():
        reconstructed = subject.stack.reconstruct(subject.x)
    loss = subject.stack.autoencoders[0].options.loss
    unit, what = loss, "The error"
    if loss == "bce":
        unit, what = "bce - entropy of x", "The cross-entropy, less that of a perfect reconstruction,"
    return Drawing(
        "errors",
        "Reconstruction error of each row",
        f"{what} of clean rows as an anomaly score: those on the right are unlike the training data.",
        f"Histogram of {len(scores)} errors above the rows that are reconstructed best and worst.",
        errors(scores, subject.x, reconstructed, shape=subject.shape, unit=f"{unit}, sum over features"),
    )


def _vector_field(subject: Subject) -> Drawing:
    return Drawing(
        "vector-field",
        "Where the reconstruction moves each point",
        "Arrows of r(x) - x on a grid, with the rows. A denoising autoencoder points to where data lie.",
        "Arrows over the plane of the two features.",
        vector_field_2d(subject.x, subject.stack),
    )
