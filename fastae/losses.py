"""Reconstruction losses per entry, once, for everything in fastae.

A loss is a function of v, the decoder's product a or the reconstruction f_out(a), and of the target x. The
definition of each is in :mod:`fastae.reference`; this table holds its derivatives and what follows from it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .activations import get_activation, softplus


@dataclass(frozen=True)
class Loss:
    """One reconstruction loss.

    ``entries_and_slope(v, x)`` gives the loss of each entry and its derivative with respect to v, and may
    overwrite v; ``target_slope(v, x)`` gives the derivative with respect to x, in memory of its own. A loss
    ``of_rows`` has one number per row, [B, 1], in place of its entries. With a ``link`` v is a itself, and
    the reconstruction is that activation of it; without, v is the reconstruction f_out(a) for any output
    activation.
    """

    name: str
    """As options spell it: ``"mse"``, or with a number ``"huber:0.5"``."""
    entries_and_slope: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    target_slope: Callable[[Tensor, Tensor], Tensor]
    link: str | None = None
    bounds: tuple[float, float] = (-math.inf, math.inf)
    """Values of x that the loss is defined for."""
    least: Callable[[Tensor], Tensor] | None = None
    """The least loss of each entry of x that any reconstruction has; ``None`` for 0."""
    draw: Callable[[Tensor, torch.Generator | None], Tensor] | None = None
    """A draw from the distribution whose likelihood the loss is, by its mean; ``None`` for a normal one."""
    of_rows: bool = False
    """True for a loss of whole rows. Weights of entries are then those of its sums over a row."""
    parameter: float = 0.0
    """The number after the name; 0 for losses without one."""

    def reconstruction_activation(self, output_activation: str) -> str:
        """The activation that turns the decoder's product into the reconstruction."""
        return self.link or output_activation

    @property
    def is_bounded(self) -> bool:
        """True if the loss is not defined for all values."""
        return self.bounds != (-math.inf, math.inf)

    @property
    def of_counts(self) -> bool:
        """True if the loss is one for counts, which scaling would turn into other numbers."""
        return self.bounds == (0.0, math.inf)

    def takes(self, low: float, high: float) -> bool:
        """True if the loss is defined for values from ``low`` to ``high``."""
        return self.bounds[0] <= low and high <= self.bounds[1]


def _mse(v: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    error = torch.sub(v, x, out=v)
    return error.square(), error.mul_(2.0)


def _bce(v: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    return softplus(v).addcmul_(v, x, value=-1.0), v.sigmoid_().sub_(x)


def _entropy(x: Tensor) -> Tensor:
    """The entropy of Bernoulli distributions with means x, held in [0, 1]."""
    x = x.clamp(0.0, 1.0)
    return -(torch.xlogy(x, x) + torch.xlogy(1.0 - x, 1.0 - x))


LEAST_LENGTH = 1e-8
"""Least length that rows are divided by, that of ``torch.nn.functional.cosine_similarity``."""


def _cosine(v: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    of_v, of_x = (torch.linalg.vector_norm(t, dim=1, keepdim=True) for t in (v, x))
    by_v, by_x = (length.clamp_min(LEAST_LENGTH).reciprocal_() for length in (of_v, of_x))
    cosine = torch.linalg.vecdot(v, x).unsqueeze(1).mul_(by_v).mul_(by_x)
    along = torch.where(of_v > LEAST_LENGTH, cosine * by_v, 0.0)
    return 1.0 - cosine, v.mul_(along).addcmul_(x, by_x, value=-1.0).mul_(by_v)


def _bernoulli(mean: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.bernoulli(mean, generator=generator)


def _poisson(mean: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.poisson(mean, generator=generator)


_LEAST_LOGIT = -40.0  # from here down softplus(a) is e^a to the digits of float64


def log_softplus(a: Tensor) -> Tensor:
    """log softplus(a); a itself where softplus(a) would underflow."""
    held = a.clamp_min(max(_LEAST_LOGIT, math.log(torch.finfo(a.dtype).tiny)))
    return softplus(held).log() + (a - held)


def _rate(a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The mean m = softplus(a), which is held above 0, log m, and d log m / da."""
    held = a.clamp_min(_LEAST_LOGIT)
    rate = softplus(held)
    return rate, rate.log().add_(a - held), held.sigmoid_().div_(rate)


def _huber_loss(delta: float) -> Loss:
    def entries_and_slope(v: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        error = torch.sub(v, x, out=v)
        slope = error.clamp(-delta, delta)
        # s (e - s / 2) is both the square and the line
        return error.sub_(slope, alpha=0.5).mul_(slope), slope

    return Loss("huber", entries_and_slope, lambda v, x: (x - v).clamp_(-delta, delta), parameter=delta)


def _poisson_loss() -> Loss:
    def entries_and_slope(v: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        rate, log_rate, slope = _rate(v)
        return torch.addcmul(rate, x, log_rate, value=-1.0), rate.sub_(x).mul_(slope)

    return Loss(
        "poisson",
        entries_and_slope,
        lambda v, x: log_softplus(v).neg_(),
        link="softplus",
        bounds=(0.0, math.inf),
        least=lambda x: x - torch.xlogy(x, x),
        draw=_poisson,
    )


def _negative_binomial_loss(dispersion: float) -> Loss:
    def entries_and_slope(v: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        rate, log_rate, slope = _rate(v)
        entries = (x + dispersion) * (rate / dispersion).log1p_()
        slope.mul_(rate - x).div_(rate.div_(dispersion).add_(1.0))
        return entries.addcmul_(x, log_rate, value=-1.0), slope

    def draw(mean: Tensor, generator: torch.Generator | None) -> Tensor:
        gamma = torch._standard_gamma(torch.full_like(mean, dispersion), generator=generator)  # pyright: ignore[reportPrivateImportUsage]
        return _poisson(gamma * (mean / dispersion), generator)

    return Loss(
        "negative_binomial",
        entries_and_slope,
        lambda v, x: (softplus(v) / dispersion).log1p_().sub_(log_softplus(v)),
        link="softplus",
        bounds=(0.0, math.inf),
        least=lambda x: (x + dispersion) * (x / dispersion).log1p() - torch.xlogy(x, x),
        draw=draw,
        parameter=dispersion,
    )


_FAMILIES: dict[str, Callable[[float], Loss]] = {
    "huber": _huber_loss,
    "negative_binomial": _negative_binomial_loss,
}
"""Losses with a number: where huber becomes linear, and the dispersion of the negative binomial."""

_TABLE = (
    Loss("mse", _mse, lambda v, x: (x - v).mul_(2.0)),
    _huber_loss(1.0),
    Loss(
        "bce",
        _bce,
        lambda v, x: v.neg(),
        link="sigmoid",
        bounds=(0.0, 1.0),
        least=_entropy,
        draw=_bernoulli,
    ),
    _poisson_loss(),
    _negative_binomial_loss(1.0),
    Loss("cosine", _cosine, lambda v, x: _cosine(x.clone(), v)[1], of_rows=True),
)

LOSSES: dict[str, Loss] = {entry.name: entry for entry in _TABLE}
"""By name; where there is a number, with the default one."""


class LossText(str):
    """The type of an option that holds a loss: a name, perhaps with a number."""

    choices = tuple(LOSSES)


def _with_number(text: str) -> Loss:
    """The loss of a text such as ``"huber:0.5"``."""
    name, _, number = text.partition(":")
    try:
        parameter = float(number)
        if not 0.0 < parameter < math.inf:
            raise ValueError
    except ValueError:
        raise ValueError(f"loss: {name} takes a number above 0 after the colon, got {text!r}") from None
    return replace(_FAMILIES[name](parameter), name=text)


_with_number._dynamo_marked_constant = True  # pyright: ignore[reportFunctionMemberAccess]


def get_loss(name: str, output_activation: str = "linear") -> Loss:
    """The loss of a name, or of a name and a number as in ``"negative_binomial:10"``.

    Raises:
        ValueError: an unknown name, a number that does not fit, or an output activation in vain.
    """
    get_activation(output_activation, "output_activation")
    if isinstance(name, str) and name.partition(":")[0] in _FAMILIES and ":" in name:
        loss = _with_number(name)
    else:
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
