"""Reconstruction losses of an entry as device functions of the pre-activation a and the target x.

``f`` holds the decoder's output activation, and the loss's number as ``parameter``.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .activations import log1p
from .elementary import exp, log, reciprocal

_LEAST_LOGIT = tl.constexpr(-40.0)  # from here down softplus(a) is e^a to the digits of float32


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
    """s (e - s / 2) and its derivative by a, for the error e = f(a) - x and s = e held in [-d, d]."""
    r = f.function(a)
    error = r - x
    s = _held(error, f.parameter)
    return s * (error - 0.5 * s), s * f.slope(r, a)


@triton.jit
def huber_target_gradient(a, x, f):
    return _held(x - f.function(a), f.parameter)


@triton.jit
def _held(error, bound):
    return tl.where(error > bound, bound, tl.where(error < -bound, -bound, error))  # nan stays nan


@triton.jit
def _rate(a):
    """The mean m = softplus(a), which is held above 0, log m and d log m / da."""
    held = tl.where(a < _LEAST_LOGIT, _LEAST_LOGIT, a)
    e = exp(-tl.abs(held))
    rate = tl.where(held < 0.0, 0.0, held) + log1p(e)
    sigmoid = tl.where(held < 0.0, e, 1.0) * reciprocal(1.0 + e)
    return rate, log(rate) + (a - held), sigmoid * reciprocal(rate)


@triton.jit
def poisson(a, x, f):
    """m - x log m and its derivative by a, for the mean m = softplus(a)."""
    rate, log_rate, slope = _rate(a)
    return rate - x * log_rate, (rate - x) * slope


@triton.jit
def poisson_target_gradient(a, x, f):
    _, log_rate, _ = _rate(a)
    return -log_rate


@triton.jit
def negative_binomial(a, x, f):
    """(x + t) log(1 + m / t) - x log m and its derivative by a, for the mean m = softplus(a)."""
    rate, log_rate, slope = _rate(a)
    ratio = rate * (1.0 / f.parameter)
    return (x + f.parameter) * log1p(ratio) - x * log_rate, (rate - x) * slope * reciprocal(1.0 + ratio)


@triton.jit
def negative_binomial_target_gradient(a, x, f):
    rate, log_rate, _ = _rate(a)
    return log1p(rate * (1.0 / f.parameter)) - log_rate


_LEAST_LENGTH = tl.constexpr(1e-8)  # of a row, to divide by


@triton.jit
def cosine(r, x, rr, xx, rx):
    """1 - cos(r, x) per row and its derivative by r, for the sums of r r, x x and r x per row, [BM, 1]."""
    length = tl.sqrt_rn(rr)
    by_r = reciprocal(tl.where(length > _LEAST_LENGTH, length, _LEAST_LENGTH))
    by_x = reciprocal(tl.maximum(tl.sqrt_rn(xx), _LEAST_LENGTH))
    cos = rx * by_r * by_x
    along = tl.where(length > _LEAST_LENGTH, cos * by_r, 0.0)
    return 1.0 - cos, (along * r - by_x * x) * by_r


@triton.jit
def cosine_target_gradient(r, x, rr, xx, rx):
    _, gradient = cosine(x, r, xx, rr, rx)
    return gradient


class Loss(NamedTuple):
    """``entry(a, x, f)`` gives the loss and its gradient by a, ``target_gradient(a, x, f)`` that by x.

    Those of a loss ``of_rows`` are functions of the reconstruction, the target and their sums per row.
    """

    entry: Any
    target_gradient: Any
    of_rows: bool = False


HEAVY = frozenset({"negative_binomial"})
"""Losses with too many numbers at once for the registers of the largest tiles."""

LOSSES: dict[str, Loss] = {
    "mse": Loss(mse, mse_target_gradient),
    "huber": Loss(huber, huber_target_gradient),
    "bce": Loss(bce, bce_target_gradient),
    "poisson": Loss(poisson, poisson_target_gradient),
    "negative_binomial": Loss(negative_binomial, negative_binomial_target_gradient),
    "cosine": Loss(cosine, cosine_target_gradient, of_rows=True),
}
