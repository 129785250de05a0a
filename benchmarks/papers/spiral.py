"""Alain and Bengio (2014): r(x) - x of a regularised autoencoder points to the manifold, here a spiral.

The rows are points of the spiral with a little noise. To measure, points of the spiral are displaced by a
distance in a random direction; the cosine is that between r(x) - x and the way to the curve's nearest point.
The net and its rate were chosen on these figures, of a few deep and shallow ones: a demonstration, no test.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fastae.train import Dataset, Stage, dataset_from_arrays
from fastae.train.data import Rows

from .learning import NONE, learn
from .protocol import Figure, Measure, Recipe, Row

DISTANCES = (0.5, 1.25, 2.5)  # neighbouring arms are 2 pi apart
_ANGLES = (np.pi, 5 * np.pi)
_NOISE = 0.125
_ROWS, _TEST_ROWS = 10_000, 2_000


@dataclass(frozen=True)
class SpiralSettings:
    """A deep autoencoder of points in the plane.

    Attributes:
        layers: widths of the codes.
        autoencoder: its options, as ``TrainConfig`` takes them.
        training: of all layers together.
    """

    layers: tuple[int, ...]
    autoencoder: Mapping[str, Any]
    training: Stage


def curve(angle: np.ndarray) -> np.ndarray:
    """Points [N, 2] of the spiral of radius = angle, at angles [N]."""
    return angle[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)


def make() -> Dataset:
    """Points of the spiral, about equally dense along it, and normal noise."""
    rng = np.random.default_rng(0)
    low, high = _ANGLES

    def rows(count: int) -> np.ndarray:
        angle = np.sqrt(rng.uniform(low**2, high**2, count))  # a turn's length grows with the angle
        return (curve(angle) + _NOISE * rng.normal(size=(count, 2))).astype(np.float32)

    return dataset_from_arrays("spiral", rows(_ROWS), x_test=rows(_TEST_ROWS), scaling="none")


def nearest(x: Tensor) -> Tensor:
    """The nearest points [N, 2] of the curve to x [N, 2], to a thousandth."""
    points = torch.from_numpy(curve(np.linspace(*_ANGLES, 100_000))).to(x)
    return torch.cat([points[torch.cdist(chunk, points).argmin(1)] for chunk in x.split(100)])


def fit(settings: SpiralSettings, data: Dataset, seed: int) -> Measure:
    """``cosine <d>``: mean cosine at points ``d`` away from points of the spiral."""
    stack = learn(data, settings.layers, settings.autoencoder, seed, NONE, settings.training)

    @torch.no_grad()
    def measure(rows: Rows) -> dict[str, float]:
        on_curve = nearest(torch.from_numpy(rows.read()))
        direction = F.normalize(torch.randn(on_curve.shape, generator=torch.Generator().manual_seed(0)))
        figures = {}
        for distance in DISTANCES:
            x = on_curve + distance * direction
            field = stack.reconstruct(x.to(next(stack.parameters()))).cpu() - x
            figures[f"cosine {distance}"] = float(F.cosine_similarity(field, nearest(x) - x).mean())
        return figures

    return measure


def _settings(**autoencoder: Any) -> SpiralSettings:
    return SpiralSettings(
        (128, 128),
        {"activation": ("tanh",), "loss": ("mse",), "tied": (False,), **autoencoder},
        Stage(epochs=100, batch_size=100, lr=3e-3, schedule="CosineAnnealingLR"),
    )


TABLE = Recipe(
    title="Alain and Bengio 2014: cosine of r(x) - x with the way to a spiral (no published figures)",
    source="Alain, Bengio (2014): What regularized auto-encoders learn from the data-generating "
    "distribution, JMLR 15, figure 5",
    rows=(
        Row("DAE, noise 0.6", _settings(corruption=("gaussian:0.6", "none"))),
        Row("DAE, noise 1.25", _settings(corruption=("gaussian:1.25", "none"))),
        Row("AE", _settings()),
    ),
    figures=tuple(Figure(f"cosine {d}", f"at {d}", "{:.2f}") for d in DISTANCES),
    fit=fit,
    shrink=lambda settings: replace(settings, training=replace(settings.training, epochs=5)),
    differences=(
        "The paper shows the field as a picture. The spiral (radius = angle, two turns, arms 2 pi apart) and "
        "the net (2-128-128-128-2, tanh, trained as a whole) are ours. Columns: distance from the curve.",
    ),
    make=make,
)
