"""Reconstruction losses per entry, once, for everything in fastae.

A loss is a function of v, the decoder's product a or the reconstruction f_out(a), and of the target x. The
definition of each is in :mod:`fastae.reference`; this table holds its derivatives and what follows from it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .activations import get_activation, softplus


@dataclass(frozen=True)
class Loss:
    """One reconstruction loss.

    ``entries_and_slope(v, x)`` gives the loss of each entry and its derivative with respect to v, and may
    overwrite v; ``target_slope(v, x)`` gives the derivative with respect to x, in memory of its own. With a
    ``link`` v is a itself, and the reconstruction is that activation of it; without, v is the reconstruction
    f_out(a) for any output activation.
    """

    name: str
    entries_and_slope: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    target_slope: Callable[[Tensor, Tensor], Tensor]
    link: str | None = None
    bounds: tuple[float, float] = (-math.inf, math.inf)
    """Values of x that the loss is defined for."""
    least: Callable[[Tensor], Tensor] | None = None
    """The least loss of each entry of x that any reconstruction has; ``None`` for 0."""
    draw: Callable[[Tensor, torch.Generator | None], Tensor] | None = None
    """A draw from the distribution whose likelihood the loss is, by its mean; ``None`` for a normal one."""

    def reconstruction_activation(self, output_activation: str) -> str:
        """The activation that turns the decoder's product into the reconstruction."""
        return self.link or output_activation

    @property
    def is_bounded(self) -> bool:
        """True if the loss is not defined for all values."""
        return self.bounds != (-math.inf, math.inf)

    def takes(self, low: float, high: float) -> bool:
        """True if the loss is defined for values from ``low`` to ``high``."""
        return self.bounds[0] <= low and high <= self.bounds[1]


def _mse(v: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    error = torch.sub(v, x, out=v)
    return error.square(), error.mul_(2.0)


def _bce(v: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    return softplus(v).addcmul_(v, x, value=-1.0), v.sigmoid_().sub_(x)


def _huber(v: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    error = torch.sub(v, x, out=v)
    slope = error.clamp(-1.0, 1.0)
    return error.sub_(slope, alpha=0.5).mul_(slope), slope  # s (e - s / 2) is both the square and the line


def _entropy(x: Tensor) -> Tensor:
    """The entropy of Bernoulli distributions with means x, held in [0, 1]."""
    x = x.clamp(0.0, 1.0)
    return -(torch.xlogy(x, x) + torch.xlogy(1.0 - x, 1.0 - x))


_TABLE = (
    Loss("mse", _mse, lambda v, x: (x - v).mul_(2.0)),
    Loss("huber", _huber, lambda v, x: (x - v).clamp_(-1.0, 1.0)),
    Loss(
        "bce",
        _bce,
        lambda v, x: v.neg(),
        link="sigmoid",
        bounds=(0.0, 1.0),
        least=_entropy,
        draw=lambda mean, generator: torch.bernoulli(mean, generator=generator),
    ),
)

LOSSES: dict[str, Loss] = {entry.name: entry for entry in _TABLE}


def get_loss(name: str, output_activation: str = "linear") -> Loss:
    """The table's entry for ``name``; ``ValueError`` for another name or an output activation in vain."""
    get_activation(output_activation, "output_activation")
    try:
        loss = LOSSES[name]
    except (KeyError, TypeError):
        raise ValueError(f"loss: {name!r} is not one of {', '.join(LOSSES)}") from None
    if loss.link is not None and output_activation != "linear":
        raise ValueError(
            f"output_activation: {name} applies the {loss.link} itself and needs 'linear', "
            f"got {output_activation!r}"
        )
    return loss
