"""Elementwise activations with their first and second derivatives, once, for everything in fastae.

A code is ``h = f(z)``. The contractive penalty needs ``s = f'(z)`` and its gradient needs ``t = f''(z)``.
Where both follow from ``h`` to the digits of its dtype, the pre-activation ``z`` is not kept for the backward
pass. A difference such as 1 + h of ``elu`` is lost in 16 bits; such activations keep z, as PyTorch's do.

Slopes at breakpoints are PyTorch's: that of the left side at 0, none at the bounds of ``hardtanh`` and
``relu6``. The second derivative is 0 there.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

_SELU_SCALE = 1.0507009873554804934193349852946
_SELU_ALPHA = 1.6732632423543772848170429916717
_LEAKY_SLOPE = 0.01
_GELU_K = math.sqrt(2.0 / math.pi)
_GELU_C = 0.044715
_GELU_FAR = 50.0  # e^(-z^2 / 2) is 0 in float64, and powers of z are far from overflow
_MISH_FAR = 750.0  # e^-|z| is 0 in float64
_gelu_ = torch._C._nn.gelu_  # pyright: ignore[reportAttributeAccessIssue]  # PyTorch exports no name of it


@dataclass(frozen=True)
class Activation:
    """One elementwise activation.

    ``function(z)`` gives h; ``derivative(h, z)`` gives s; ``second(h, s, z)`` gives t.
    ``z`` is read only where ``needs_preactivation`` is set and may be ``None`` otherwise. It is then kept for
    the backward pass: [M, H] more in memory. ``second`` is ``None`` where t is zero everywhere; ``inplace``
    overwrites z with h where PyTorch can; ``inverse(h)`` gives z where it is needed and h determines it.
    """

    name: str
    function: Callable[[Tensor], Tensor]
    derivative: Callable[[Tensor, Tensor], Tensor]
    second: Callable[[Tensor, Tensor, Tensor], Tensor] | None
    needs_preactivation: bool = False
    inplace: Callable[[Tensor], Tensor] | None = None
    inverse: Callable[[Tensor], Tensor] | None = None
    bounds: tuple[float, float] = (-math.inf, math.inf)

    def in_place(self, z: Tensor) -> Tensor:
        """h, in the memory of z where PyTorch can."""
        return (self.inplace or self.function)(z)

    @property
    def code_tells_slope(self) -> bool:
        """True if the slope follows from the code, at least to the digits that a picture needs."""
        return not self.needs_preactivation or self.inverse is not None

    @property
    def in_unit_interval(self) -> bool:
        """True if every code lies in [0, 1], as bce targets and Bernoulli codes must."""
        return self.bounds == (0.0, 1.0)


def softplus(z: Tensor) -> Tensor:
    """log(1 + e^z) to full precision also in float64; PyTorch's own becomes the identity at 20."""
    return F.softplus(z, beta=1.0, threshold=40.0)


def _step(h: Tensor, below: float) -> Tensor:
    """1 where h > 0, else ``below``."""
    return torch.where(h > 0, torch.ones_like(h), below)  # two plain numbers would make a float32


def _inside(low: float, high: float) -> Callable[[Tensor, Tensor], Tensor]:
    """The slope of a clamp: 1 between its bounds, 0 at them."""
    return lambda h, z: ((h > low) & (h < high)).to(h.dtype)


def _left(z: Tensor) -> Tensor:
    """min(z, 0), whose own derivative is 0 at 0."""
    return torch.where(z >= 0.0, 0.0, z)  # in this order nan stays nan


def _softsign_second(h: Tensor, s: Tensor, z: Tensor) -> Tensor:
    return -2.0 * z.sign() * s / (1.0 + z.abs())


def _sigmoid_derivative(h: Tensor, z: Tensor) -> Tensor:
    if torch.compiler.is_compiling():
        return h * (1.0 - h)  # which compilers compute again in the backward pass, and do not keep
    return torch.addcmul(h, h, h, value=-1.0)  # in one pass


def _normal_cdf(z: Tensor) -> Tensor:
    return 0.5 * torch.erfc(z * -math.sqrt(0.5))


def _normal_pdf(z: Tensor) -> Tensor:
    return torch.exp(-0.5 * z * z) * (1.0 / math.sqrt(2.0 * math.pi))


def _saturated(z: Tensor, far: float = _GELU_FAR) -> Tensor:
    """z held where derivatives are at their limits, so that its powers and its products with 0 are finite."""
    return z.clamp(-far, far)


def _gelu_tanh_parts(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """tanh(u), its complement 1 - tanh(u)^2, and u' for u = k (z + c z^3)."""
    th = torch.tanh(_GELU_K * (z + _GELU_C * z**3))
    return th, 1.0 - th * th, _GELU_K * (1.0 + 3.0 * _GELU_C * z * z)


def _gelu_tanh_derivative(h: Tensor, z: Tensor) -> Tensor:
    z = _saturated(z)
    th, complement, du = _gelu_tanh_parts(z)
    return 0.5 * (1.0 + th) + 0.5 * z * complement * du


def _gelu_tanh_second(h: Tensor, s: Tensor, z: Tensor) -> Tensor:
    z = _saturated(z)
    th, complement, du = _gelu_tanh_parts(z)
    d2u = 6.0 * _GELU_K * _GELU_C * z
    return complement * (du + 0.5 * z * d2u - z * th * du * du)


def _silu_derivative(h: Tensor, z: Tensor) -> Tensor:
    sigma = torch.sigmoid(z)
    return sigma * (1.0 + z * (1.0 - sigma))


def _silu_second(h: Tensor, s: Tensor, z: Tensor) -> Tensor:
    sigma = torch.sigmoid(z)
    return sigma * (1.0 - sigma) * (2.0 + z * (1.0 - 2.0 * sigma))


def _mish_parts(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """tanh(softplus(z)), its complement 1 - tanh^2, and sigmoid(z)."""
    th = torch.tanh(softplus(z))
    return th, 1.0 - th * th, torch.sigmoid(z)


def _mish_derivative(h: Tensor, z: Tensor) -> Tensor:
    z = _saturated(z, _MISH_FAR)
    th, complement, sigma = _mish_parts(z)
    return th + z * complement * sigma


def _mish_second(h: Tensor, s: Tensor, z: Tensor) -> Tensor:
    z = _saturated(z, _MISH_FAR)
    th, complement, sigma = _mish_parts(z)
    return complement * sigma * (2.0 + z * (1.0 - sigma - 2.0 * th * sigma))


_TABLE = (
    Activation("linear", lambda z: z.clone(), lambda h, z: torch.ones_like(h), None, inplace=lambda z: z),
    Activation(
        "sigmoid",
        torch.sigmoid,
        _sigmoid_derivative,
        lambda h, s, z: torch.addcmul(s, s, h, value=-2.0),  # s(1 - 2h) in one pass
        inplace=torch.sigmoid_,
        bounds=(0.0, 1.0),
    ),
    Activation(
        "tanh",
        torch.tanh,
        lambda h, z: 1.0 - h * h,
        lambda h, s, z: -2.0 * h * s,
        inplace=torch.tanh_,
        bounds=(-1.0, 1.0),
    ),
    Activation(
        "relu", torch.relu, lambda h, z: _step(h, 0.0), None, inplace=torch.relu_, bounds=(0.0, math.inf)
    ),
    Activation(
        "leaky_relu",
        lambda z: F.leaky_relu(z, _LEAKY_SLOPE),
        lambda h, z: _step(h, _LEAKY_SLOPE),
        None,
        inplace=lambda z: F.leaky_relu(z, _LEAKY_SLOPE, True),
    ),
    Activation(
        "softplus",
        softplus,
        lambda h, z: torch.sigmoid(z),
        lambda h, s, z: s * torch.sigmoid(-z),
        needs_preactivation=True,
        inverse=lambda h: h + torch.log(-torch.expm1(-h)),
        bounds=(0.0, math.inf),
    ),
    Activation(
        "elu",
        F.elu,
        lambda h, z: torch.exp(_left(z)),
        lambda h, s, z: torch.where(z < 0, s, 0.0),
        needs_preactivation=True,
        inplace=lambda z: F.elu(z, inplace=True),
        inverse=lambda h: torch.where(h < 0, torch.log1p(h), h),
        bounds=(-1.0, math.inf),
    ),
    Activation(
        "selu",
        F.selu,
        lambda h, z: torch.where(z > 0, _SELU_SCALE, torch.exp(_left(z)) * (_SELU_SCALE * _SELU_ALPHA)),
        lambda h, s, z: torch.where(z < 0, s, 0.0),
        needs_preactivation=True,
        inplace=torch.selu_,
        inverse=lambda h: torch.where(h < 0, torch.log1p(h / (_SELU_SCALE * _SELU_ALPHA)), h / _SELU_SCALE),
        bounds=(-_SELU_SCALE * _SELU_ALPHA, math.inf),
    ),
    Activation(
        "gelu",
        F.gelu,
        lambda h, z: _normal_cdf(z) + _saturated(z) * _normal_pdf(_saturated(z)),
        lambda h, s, z: _normal_pdf(_saturated(z)) * (2.0 - _saturated(z) ** 2),
        needs_preactivation=True,
        inplace=_gelu_,
    ),
    Activation(
        "gelu_tanh",
        lambda z: F.gelu(z, approximate="tanh"),
        _gelu_tanh_derivative,
        _gelu_tanh_second,
        needs_preactivation=True,
        inplace=lambda z: _gelu_(z, approximate="tanh"),
    ),
    Activation(
        "silu",
        F.silu,
        _silu_derivative,
        _silu_second,
        needs_preactivation=True,
        inplace=lambda z: F.silu(z, True),
    ),
    Activation(
        "softsign",
        F.softsign,
        lambda h, z: (1.0 + z.abs()) ** -2,
        _softsign_second,
        needs_preactivation=True,
        inverse=lambda h: h / (1.0 - h.abs()),
        bounds=(-1.0, 1.0),
    ),
    Activation(
        "mish",
        F.mish,
        _mish_derivative,
        _mish_second,
        needs_preactivation=True,
        inplace=lambda z: F.mish(z, True),
    ),
    Activation("hardtanh", F.hardtanh, _inside(-1.0, 1.0), None, inplace=F.hardtanh_, bounds=(-1.0, 1.0)),
    Activation(
        "relu6", F.relu6, _inside(0.0, 6.0), None, inplace=lambda z: F.relu6(z, True), bounds=(0.0, 6.0)
    ),
)

ACTIVATIONS: dict[str, Activation] = {entry.name: entry for entry in _TABLE}


def get_activation(name: str, argument: str = "activation") -> Activation:
    """The table's entry for ``name``; a ``ValueError`` naming ``argument`` lists the known ones."""
    try:
        return ACTIVATIONS[name]
    except (KeyError, TypeError):
        raise ValueError(f"{argument}: {name!r} is not one of {', '.join(ACTIVATIONS)}") from None
