"""The Jacobian dh/dx of an encoder: norm, spectrum, directions, and contraction at a distance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from .. import functional
from ..checks import check_name, check_whole
from ..functional import Layer
from .networks import (
    Network,
    apply_layers,
    check_finite,
    chunks,
    encoder_layers,
    measurement,
    room,
    slopes_of,
    widened,
    widest,
)

_METHODS = ("auto", "exact", "estimate")
_EXACT_SEEDS = 64


class _Jacobian:
    """J = dh/dx [B, H, D] = diag(s_L) W_L ... diag(s_1) W_1 of a chain of layers, in blocks.

    If W_1 [H_1, D] is wider than it is high, its factor R^T replaces it: W_1 = R^T Q^T, and the orthonormal
    columns of Q = ``basis`` [D, H_1] leave the singular values unchanged. The product starts at the narrower
    end: at the code (rows of J) or at the input (columns of J).
    """

    def __init__(self, layers: Sequence[Layer]) -> None:
        self.weights = [weight for weight, _, _ in layers]
        first = self.weights[0]
        self.basis: Tensor | None = None
        if first.shape[0] < first.shape[1]:
            self.basis, factor = torch.linalg.qr(first.t())
            self.weights[0] = factor.t()
        features, units = self.weights[0].shape[1], self.weights[-1].shape[0]
        self.by_column = features < units
        self.seeds = min(features, units)  # number of rows, or of columns
        self.width = max(max(weight.shape) for weight in self.weights)

    def block(self, slopes: list[Tensor], seeds: slice) -> Tensor:
        """The rows [B, k, D] of J at ``seeds``, or the rows [B, k, H] of its transpose if ``by_column``."""
        scales = [s[:, None, :] for s in slopes]
        if self.by_column:
            product = self.weights[0].t()[seeds] * scales[0]
            for weight, s in zip(self.weights[1:], scales[1:], strict=True):
                product = (product @ weight.t()) * s
            return product
        product = self.weights[-1][seeds] * slopes[-1][:, seeds, None]
        for weight, s in zip(self.weights[-2::-1], scales[-2::-1], strict=True):
            product = (product * s) @ weight
        return product

    def whole(self, slopes: list[Tensor]) -> Tensor:
        """J up to an orthonormal basis, or its transpose if ``by_column``, [B, seeds, D or H]."""
        return self.block(slopes, slice(None))

    def leading(self, slopes: list[Tensor], k: int) -> tuple[Tensor, Tensor]:
        """The first k right singular vectors [B, k, D], largest entries positive, and values [B, k]."""
        left, values, right = torch.linalg.svd(self.whole(slopes), full_matrices=False)
        directions = (left.mT if self.by_column else right)[:, :k]
        if self.basis is not None:
            directions = directions @ self.basis.t()
        largest = directions.gather(-1, directions.abs().argmax(-1, keepdim=True))
        return torch.where(largest < 0.0, -directions, directions), values[:, :k]


def squared_jacobian_norm(
    layers: Sequence[Layer],
    x: Tensor,
    method: str = "auto",
    probes: int = 4,
    generator: torch.Generator | None = None,
) -> Tensor:
    """||dh/dx||_F^2 of each row of x [M, D], [M]; ``layers`` are wide, and fit."""
    out = x.new_empty(math.prod(x.shape[:-1]), dtype=layers[0][0].dtype)
    if len(layers) == 1 and method != "estimate":
        for place, rows in chunks(x, widest(layers)):
            out[place] = functional.contractive_encode(rows, *layers[0], reduction="none")[1]
        return out
    if method == "auto":
        narrow = min(layers[0][0].shape[1], layers[0][0].shape[0], layers[-1][0].shape[0])
        method = "exact" if narrow <= _EXACT_SEEDS else "estimate"
    if method == "estimate":
        for place, rows in chunks(x, sum(weight.shape[0] for weight, _, _ in layers)):
            out[place] = functional.deep_contractive_encode(
                rows, layers, probes=probes, reduction="none", generator=generator
            )[1]
        return out
    jacobian = _Jacobian(layers)
    step = min(jacobian.seeds, room(jacobian.width))
    for place, rows in chunks(x, max(jacobian.width * step, widest(layers))):
        slopes, total = slopes_of(layers, rows), out[place].zero_()
        for low in range(0, jacobian.seeds, step):
            total += jacobian.block(slopes, slice(low, low + step)).square_().sum((1, 2))
    return out


@measurement
def jacobian_norm(
    model: Network,
    x: Tensor,
    *,
    method: Literal["auto", "exact", "estimate"] = "auto",
    probes: int = 4,
    generator: torch.Generator | None = None,
) -> Tensor:
    """||dh/dx||_F of each row, [*]: the root of the contractive penalty of the whole encoder.

    Args:
        model: an encoder.
        x: [*, D].
        method: ``"exact"``: the closed form for one layer; for several layers, blocks of the Jacobian, whose
            number of products per row is the width of the narrowest of input, first and last code.
            ``"estimate"``: the root of Hutchinson's unbiased estimate of the square. ``"auto"``: exact for
            one layer and where that width is at most 64.
        probes: random probes per row for the estimate.
        generator: generator of the probes.

    Raises:
        ValueError: an argument that does not fit, named.
    """
    check_name("method", method, _METHODS)
    probes = check_whole("probes:", probes)
    layers = widened(encoder_layers(model), x)
    return squared_jacobian_norm(layers, x, method, probes, generator).sqrt_().view(x.shape[:-1])


@measurement
def jacobian_spectrum(model: Network, x: Tensor, k: int | None = None) -> Tensor:
    """The singular values of dh/dx, largest first, each averaged over rows, [k] (Rifai et al. 2011, fig. 3).

    Args:
        model: an encoder.
        x: [*, D], with rows.
        k: number of singular values. At most, and by default, the width of the narrowest of input and codes:
            all others are 0.

    Raises:
        ValueError: an argument that does not fit or is not finite, named.
    """
    layers = widened(encoder_layers(model), x, rows=1)
    k = _check_k(k, layers)
    _check_finite(layers, x)
    jacobian = _Jacobian(layers)
    total = x.new_zeros(k, dtype=layers[0][0].dtype)
    for _, rows in chunks(x, jacobian.seeds * jacobian.width):
        total += torch.linalg.svdvals(jacobian.whole(slopes_of(layers, rows)))[:, :k].sum(0)
    return total / math.prod(x.shape[:-1])


@measurement
def tangents(model: Network, x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The input directions that change the code most: tangents of the data's manifold (Rifai et al. 2011b).

    Args:
        model: an encoder.
        x: [*, D].
        k: number of directions; at most the width of the narrowest of input and codes.

    Returns:
        The first k right singular vectors of dh/dx at each row, orthonormal rows [*, k, D], and their
        singular values, largest first, [*, k]. The largest entry of each direction is positive. Where
        singular values are equal, their directions are an arbitrary basis of the space they span.

    Raises:
        ValueError: an argument that does not fit or is not finite, named.
    """
    layers = widened(encoder_layers(model), x)
    k = _check_k(k, layers)
    _check_finite(layers, x)
    jacobian = _Jacobian(layers)
    leading, features = x.shape[:-1], x.shape[-1]
    directions = x.new_empty(math.prod(leading), k, features, dtype=layers[0][0].dtype)
    values = directions.new_empty(len(directions), k)
    for place, rows in chunks(x, max(jacobian.seeds * jacobian.width, k * features)):
        directions[place], values[place] = jacobian.leading(slopes_of(layers, rows), k)
    return directions.view(*leading, k, features), values.view(*leading, k)


@measurement
def contraction_curve(
    model: Network,
    x: Tensor,
    radii: Sequence[float] | Tensor,
    *,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The contraction ratio ||h(x + e) - h(x)|| / ||e|| at each distance ||e||, mean over rows, [R].

    e is uniform on the sphere around each row (Rifai et al. 2011, fig. 2), with one direction per row for all
    radii. In float32 the ratio at a radius r is accurate to about 1e-7 max(||x||, ||h||) / r.

    Args:
        model: an encoder.
        x: [*, D], with rows.
        radii: positive distances, in the units of x.
        generator: generator of the directions, on the device of x.

    Raises:
        ValueError: an argument that does not fit, named.
    """
    layers = widened(encoder_layers(model), x, rows=1)
    try:
        lengths = [float(radius) for radius in radii]
    except (TypeError, ValueError):
        lengths = []
    if not lengths or not all(radius > 0.0 and math.isfinite(radius) for radius in lengths):
        raise ValueError(f"radii: expected positive finite distances, got {radii!r}")
    total = x.new_zeros(len(lengths), dtype=layers[0][0].dtype)
    for _, rows in chunks(x, widest(layers)):
        directions = torch.empty(rows.shape, dtype=rows.dtype, device=rows.device).normal_(
            generator=generator
        )
        directions /= torch.linalg.vector_norm(directions, dim=1, keepdim=True)
        code = apply_layers(layers, rows)
        for number, radius in enumerate(lengths):
            moved = apply_layers(layers, rows + radius * directions) - code
            total[number] += torch.linalg.vector_norm(moved, dim=1).sum() / radius
    return total / math.prod(x.shape[:-1])


def _check_finite(layers: Sequence[Layer], x: Tensor) -> None:
    check_finite("x", x)
    for weight, _, _ in layers:
        check_finite("model's weights", weight)


def _check_k(k: int | None, layers: Sequence[Layer]) -> int:
    most = min(min(weight.shape) for weight, _, _ in layers)
    if k is None:
        return most
    return check_whole("k:", k, most=most)
