"""Units by their codes: which are flat, dead or sparse."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..activations import get_activation
from ..arguments import check_floating
from ..tensors import sum_dtype
from .networks import check_rows, measurement

SATURATED_SLOPE = 0.19
"""Of the slope at 0: h < .05 or h > .95 for the sigmoid, |h| > .9 for tanh."""

DEAD_RANGE = 1e-3


@measurement
def saturated(code: Tensor, activation: str = "sigmoid", *, preactivation: Tensor | None = None) -> Tensor:
    """Mask of flat codes: |s| at most 0.19 of the slope at 0; bool like ``code`` [*, H].

    For the sigmoid these are h < .05 and h > .95, as counted by Rifai et al. (2011, table 1); for relu, codes
    at 0. No code of leaky_relu or linear is flat.

    Args:
        code: h = f(z), [*, H].
        activation: f, by name.
        preactivation: z, like ``code``; required for activations whose slope does not follow from h, such as
            gelu, gelu_tanh and silu.

    Raises:
        ValueError: an argument that does not fit, named.
    """
    check_floating("code", code)
    f = get_activation(activation)
    if preactivation is not None:
        check_floating("preactivation", preactivation)
        if preactivation.shape != code.shape:
            raise ValueError(
                f"preactivation: expected shape {list(code.shape)}, got {list(preactivation.shape)}"
            )
        if preactivation.device != code.device:
            raise ValueError(f"preactivation: is on {preactivation.device}, but the code on {code.device}")
    elif not f.code_tells_slope:
        raise ValueError(f"preactivation: needed, the slope of {activation} does not follow from the code")
    wide = sum_dtype(code.dtype)
    h = code.to(wide)
    z = (f.inverse(h) if f.inverse else h) if preactivation is None else preactivation.to(wide)
    return is_flat(f.derivative(h, z), activation)


def is_flat(slope: Tensor, activation: str) -> Tensor:
    """Mask of the slopes of saturated codes; bool like ``slope``."""
    f = get_activation(activation)
    zero = slope.new_zeros(1)
    slope_at_0 = float(f.derivative(f.function(zero), zero))  # 0 for relu: what is flat counts
    return slope.abs() <= SATURATED_SLOPE * slope_at_0


def saturated_share(
    code: Tensor, activation: str = "sigmoid", *, preactivation: Tensor | None = None
) -> Tensor:
    """Share of rows in which each unit is :func:`saturated`, [H], for codes [*, H] with rows.

    NaN for units with NaN codes.
    """
    check_rows("code", code)
    return _share(saturated(code, activation, preactivation=preactivation), code)


@measurement
def active_share(code: Tensor, threshold: float = 0.0) -> Tensor:
    """Share of rows in which |h| > ``threshold``, [H], for codes [*, H]; NaN for units with NaN codes.

    Raises:
        ValueError: no rows, or a threshold that is not >= 0.
    """
    check_rows("code", code)
    if not threshold >= 0.0:
        raise ValueError(f"threshold: must be >= 0, got {threshold!r}")
    return _share(code.abs() > threshold, code)


def _share(chosen: Tensor, code: Tensor) -> Tensor:
    rows = math.prod(chosen.shape[:-1])
    # counted in whole numbers: float32 stops at 2^24
    share = chosen.reshape(rows, -1).sum(0).to(sum_dtype(code.dtype)) / rows
    return share.masked_fill(code.reshape(rows, -1).isnan().any(0), math.nan)


@measurement
def dead_units(code: Tensor, tolerance: float = DEAD_RANGE) -> Tensor:
    """Mask of units whose codes [*, H] vary by less than ``tolerance`` over all rows, bool [H].

    Units with NaN codes are not dead.

    Raises:
        ValueError: no rows, or a tolerance that is not > 0.
    """
    check_rows("code", code)
    if not tolerance > 0.0:
        raise ValueError(f"tolerance: must be > 0, got {tolerance!r}")
    rows = code.reshape(-1, code.shape[-1])
    return (rows.amax(0).to(sum_dtype(code.dtype)) - rows.amin(0)) < tolerance


@measurement
def code_sparsity(code: Tensor) -> Tensor:
    """(sqrt(H) - ||h||_1 / ||h||_2) / (sqrt(H) - 1) of each row, [*], for codes [*, H] (Hoyer 2004).

    0 where all units are equally far from 0; 1 where at most one is not 0; NaN where a code is not finite.
    """
    check_rows("code", code, 0)
    wide = code.to(sum_dtype(code.dtype))
    root = math.sqrt(code.shape[-1])
    largest = wide.abs().amax(-1, keepdim=True)
    scaled = wide / torch.where(largest == 0.0, 1.0, largest)  # squares must not vanish or overflow
    l1, l2 = scaled.abs().sum(-1), torch.linalg.vector_norm(scaled, dim=-1)
    only = largest[..., 0] == 0.0 if root > 1.0 else l2.isfinite()
    return torch.where(only, 1.0, (root - l1 / l2) / (root - 1.0 or math.nan)).clamp(0.0, 1.0)
