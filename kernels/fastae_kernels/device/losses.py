"""Reconstruction losses of an entry as device functions of the pre-activation a and the target x."""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .activations import log1p
from .elementary import exp, reciprocal


@triton.jit
def mse(a, x, f):
    """(f(a) - x)^2 and its derivative by a; f is the decoder's output activation."""
    r = f.function(a)
    error = r - x
    return error * error, 2.0 * error * f.slope(r, a)


@triton.jit
def mse_target_gradient(a, x, f):
    return 2.0 * (x - f.function(a))


@triton.jit
def bce(a, x, f):
    """softplus(a) - x a and its derivative by a: the cross-entropy on logits, with one exponential."""
    e = exp(-tl.abs(a))
    sigmoid = tl.where(a < 0.0, e, 1.0) * reciprocal(1.0 + e)
    linear = (
        tl.where(a <= 0.0, 0.0, a) - x * a
    )  # first, or the small rest of a sure entry would be lost in it
    return linear + log1p(e), sigmoid - x


@triton.jit
def bce_target_gradient(a, x, f):
    return -a


@triton.jit
def huber(a, x, f):
    """s (e - s / 2) and its derivative by a, for the error e = f(a) - x and s = e held in [-1, 1]."""
    r = f.function(a)
    error = r - x
    s = _held(error)
    return s * (error - 0.5 * s), s * f.slope(r, a)


@triton.jit
def huber_target_gradient(a, x, f):
    return _held(x - f.function(a))


@triton.jit
def _held(error):
    return tl.where(error > 1.0, 1.0, tl.where(error < -1.0, -1.0, error))  # nan stays nan


class Loss(NamedTuple):
    """``entry(a, x, f)`` gives the loss and its gradient by a, ``target_gradient(a, x, f)`` that by x."""

    entry: Any
    target_gradient: Any


LOSSES: dict[str, Loss] = {
    "mse": Loss(mse, mse_target_gradient),
    "huber": Loss(huber, huber_target_gradient),
    "bce": Loss(bce, bce_target_gradient),
}
