"""Elementwise activations and losses' transcendental parts as device functions, in float32.

``function(z)`` gives the code h, ``slope(h, z)`` its derivative s and ``second(h, s, z)`` the derivative t
of the slope; z is read only where the table's row says ``preactivation``. At a breakpoint the slope is that
of PyTorch (of the left side at 0, none at the bounds of hardtanh and relu6) and the second derivative 0.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .elementary import exp, log, reciprocal
from .layouts import filled

# to the right of tensors, since the interpreter takes no constant's product with a tensor
_SELU_SCALE = tl.constexpr(1.0507009873554804934193349852946)
_SELU_ALPHA = tl.constexpr(1.6732632423543772848170429916717)
_LEAKY_SLOPE = tl.constexpr(0.01)
_GELU_K = tl.constexpr(0.7978845608028654)  # sqrt(2 / pi)
_GELU_C = tl.constexpr(0.044715)
_SQRT_HALF = tl.constexpr(0.7071067811865476)
_NORMAL_PEAK = tl.constexpr(0.3989422804014327)  # 1 / sqrt(2 pi)
_GELU_FAR = tl.constexpr(50.0)  # e^(-z^2 / 2) is 0, and powers of z are far from overflow
_MISH_FAR = tl.constexpr(750.0)  # e^-|z| is 0
_SMALL = tl.constexpr(0.0625)  # below it a short series keeps the digits that a difference with 1 would lose


@triton.jit
def expm1(z):
    """e^z - 1."""
    series = z * (1.0 + z * (0.5 + z * (1.0 / 6.0 + z * (1.0 / 24.0 + z * (1.0 / 120.0)))))
    return tl.where(tl.abs(z) < _SMALL, series, exp(z) - 1.0)


@triton.jit
def log1p(e):
    """log(1 + e) for e >= 0."""
    series = e * (1.0 - e * (0.5 - e * (1.0 / 3.0 - e * (0.25 - e * (0.2 - e * (1.0 / 6.0))))))
    return tl.where(e < _SMALL, series, log(1.0 + e))


@triton.jit
def sign(h):
    return tl.where(h > 0.0, 1.0, tl.where(h < 0.0, -1.0, 0.0))


@triton.jit
def linear(z):
    return z


@triton.jit
def linear_slope(h, z):
    return filled(h, 1.0, tl.float32)


@triton.jit
def sigmoid(z):
    return reciprocal(1.0 + exp(-z))


@triton.jit
def sigmoid_slope(h, z):
    return h * (1.0 - h)


@triton.jit
def sigmoid_second(h, s, z):
    return s * (1.0 - 2.0 * h)


@triton.jit
def tanh(z):
    size = tl.abs(z)
    e = exp(-2.0 * size)
    square = z * z
    series = 1.0 - square * (
        1.0 / 3.0 - square * (2.0 / 15.0 - square * (17.0 / 315.0 - square * (62.0 / 2835.0)))
    )
    value = (1.0 - e) * reciprocal(1.0 + e)
    return tl.where(size < 0.25, z * series, tl.where(z < 0.0, -value, value))


@triton.jit
def tanh_slope(h, z):
    return 1.0 - h * h


@triton.jit
def tanh_second(h, s, z):
    return -2.0 * h * s


@triton.jit
def relu(z):
    return tl.where(z <= 0.0, 0.0, z)  # in this order nan stays nan


@triton.jit
def relu_slope(h, z):
    return tl.where(h > 0.0, 1.0, 0.0)


@triton.jit
def leaky_relu(z):
    return tl.where(z > 0.0, z, z * _LEAKY_SLOPE)


@triton.jit
def leaky_relu_slope(h, z):
    return tl.where(h > 0.0, 1.0, _LEAKY_SLOPE)


@triton.jit
def softplus(z):
    return tl.where(z <= 0.0, 0.0, z) + log1p(exp(-tl.abs(z)))


@triton.jit
def softplus_slope(h, z):
    sigma, _ = _sigmoid_parts(z)
    return sigma


@triton.jit
def softplus_second(h, s, z):
    _, rest = _sigmoid_parts(z)
    return s * rest


@triton.jit
def elu(z):
    return tl.where(z > 0.0, z, expm1(z))


@triton.jit
def elu_slope(h, z):
    return tl.where(z > 0.0, 1.0, exp(z))


@triton.jit
def elu_second(h, s, z):
    return tl.where(z < 0.0, s, 0.0)


@triton.jit
def selu(z):
    return tl.where(z > 0.0, z, expm1(z) * _SELU_ALPHA) * _SELU_SCALE


@triton.jit
def selu_slope(h, z):
    return tl.where(z > 0.0, _SELU_SCALE, exp(z) * (_SELU_SCALE * _SELU_ALPHA))


@triton.jit
def _saturated(z, FAR: tl.constexpr):
    """z held where derivatives are at their limits, so that its powers and its products with 0 are finite."""
    return tl.where(z > FAR, FAR, tl.where(z < -FAR, -FAR, z))


@triton.jit
def _normal_cdf(z):
    return 0.5 + 0.5 * tl.erf(z * _SQRT_HALF)


@triton.jit
def _normal_pdf(z):
    return exp(-0.5 * z * z) * _NORMAL_PEAK


@triton.jit
def gelu(z):
    return z * _normal_cdf(z)


@triton.jit
def gelu_slope(h, z):
    z = _saturated(z, _GELU_FAR)
    return _normal_cdf(z) + z * _normal_pdf(z)


@triton.jit
def gelu_second(h, s, z):
    z = _saturated(z, _GELU_FAR)
    return _normal_pdf(z) * (2.0 - z * z)


@triton.jit
def _gelu_tanh_argument(z):
    return (z + z * z * z * _GELU_C) * _GELU_K


@triton.jit
def gelu_tanh(z):
    return z * sigmoid(2.0 * _gelu_tanh_argument(z))  # 0.5 (1 + tanh u) = sigmoid(2u)


@triton.jit
def _gelu_tanh_parts(z):
    """tanh(u), 1 - tanh(u)^2 without cancellation, and u' for gelu_tanh's argument u."""
    u = _gelu_tanh_argument(z)
    e = exp(-2.0 * tl.abs(u))
    inverse = reciprocal(1.0 + e)
    return tanh(u), 4.0 * e * inverse * inverse, (1.0 + z * z * (3.0 * _GELU_C)) * _GELU_K


@triton.jit
def gelu_tanh_slope(h, z):
    z = _saturated(z, _GELU_FAR)
    th, complement, du = _gelu_tanh_parts(z)
    return 0.5 * (1.0 + th) + 0.5 * z * complement * du


@triton.jit
def gelu_tanh_second(h, s, z):
    z = _saturated(z, _GELU_FAR)
    th, complement, du = _gelu_tanh_parts(z)
    d2u = z * (6.0 * _GELU_K * _GELU_C)
    return complement * (du + 0.5 * z * d2u - z * th * du * du)


@triton.jit
def silu(z):
    return z * sigmoid(z)


@triton.jit
def _sigmoid_parts(z):
    """sigmoid(z) and 1 - sigmoid(z), both without cancellation."""
    w = exp(-tl.abs(z))
    left = z < 0.0
    inverse = reciprocal(1.0 + w)
    return tl.where(left, w, 1.0) * inverse, tl.where(left, 1.0, w) * inverse


@triton.jit
def silu_slope(h, z):
    sigma, rest = _sigmoid_parts(z)
    return sigma * (1.0 + z * rest)


@triton.jit
def silu_second(h, s, z):
    sigma, rest = _sigmoid_parts(z)
    return sigma * rest * (2.0 + z * (rest - sigma))


@triton.jit
def softsign(z):
    return z / (1.0 + tl.abs(z))


@triton.jit
def softsign_slope(h, z):
    size = 1.0 + tl.abs(z)
    return reciprocal(size * size)


@triton.jit
def softsign_second(h, s, z):
    return -2.0 * sign(z) * s * reciprocal(1.0 + tl.abs(z))


@triton.jit
def _mish_parts(z):
    """tanh(softplus(z)), its exact complement 1 - tanh^2, and sigmoid(z)."""
    w = exp(-tl.abs(z))
    left = z < 0.0
    n = tl.where(left, w * (w + 2.0), 1.0 + 2.0 * w)  # tanh = n / (n + rest)
    rest = tl.where(left, 2.0, 2.0 * w * w)
    inverse = reciprocal(n + rest)
    th = n * inverse
    return th, (1.0 + th) * rest * inverse, tl.where(left, w, 1.0) * reciprocal(1.0 + w)


@triton.jit
def mish(z):
    th, _, _ = _mish_parts(z)
    return z * th


@triton.jit
def mish_slope(h, z):
    z = _saturated(z, _MISH_FAR)
    th, complement, sigma = _mish_parts(z)
    return th + z * complement * sigma


@triton.jit
def mish_second(h, s, z):
    z = _saturated(z, _MISH_FAR)
    th, complement, sigma = _mish_parts(z)
    return complement * sigma * (2.0 + z * (1.0 - sigma - 2.0 * th * sigma))


@triton.jit
def hardtanh(z):
    return tl.where(z <= -1.0, -1.0, tl.where(z >= 1.0, 1.0, z))


@triton.jit
def hardtanh_slope(h, z):
    return tl.where(tl.abs(h) < 1.0, 1.0, 0.0)


@triton.jit
def relu6(z):
    return tl.where(z <= 0.0, 0.0, tl.where(z >= 6.0, 6.0, z))


@triton.jit
def relu6_slope(h, z):
    return tl.where((h > 0.0) & (h < 6.0), 1.0, 0.0)


class Activation(NamedTuple):
    """The device functions of one activation."""

    function: Any
    slope: Any
    second: Any  # None where t is 0 everywhere
    preactivation: bool = False  # whether the derivatives need z; else they follow from h

    @property
    def functions(self) -> dict[str, Any]:
        """The fields that epilogues have, by name."""
        return {"function": self.function, "slope": self.slope, "second": self.second}


ACTIVATIONS: dict[str, Activation] = {
    "linear": Activation(linear, linear_slope, None),
    "sigmoid": Activation(sigmoid, sigmoid_slope, sigmoid_second),
    "tanh": Activation(tanh, tanh_slope, tanh_second),
    "relu": Activation(relu, relu_slope, None),
    "leaky_relu": Activation(leaky_relu, leaky_relu_slope, None),
    "softplus": Activation(softplus, softplus_slope, softplus_second, preactivation=True),
    "elu": Activation(elu, elu_slope, elu_second, preactivation=True),
    "selu": Activation(selu, selu_slope, elu_second, preactivation=True),
    "gelu": Activation(gelu, gelu_slope, gelu_second, preactivation=True),
    "gelu_tanh": Activation(gelu_tanh, gelu_tanh_slope, gelu_tanh_second, preactivation=True),
    "silu": Activation(silu, silu_slope, silu_second, preactivation=True),
    "softsign": Activation(softsign, softsign_slope, softsign_second, preactivation=True),
    "mish": Activation(mish, mish_slope, mish_second, preactivation=True),
    "hardtanh": Activation(hardtanh, hardtanh_slope, None),
    "relu6": Activation(relu6, relu6_slope, None),
}
