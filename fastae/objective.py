"""The objective of an autoencoder, declared once: its options, their defaults, meanings and checks.

The public functions, the modules, the training configuration and the command line all take the options from
:class:`Objective`.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Collection
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple, TypedDict, TypeVar

import torch
import torch.utils._pytree
from torch import Tensor

from .activations import get_activation
from .checks import check_name, check_nonnegative, check_share, fits
from .corruption import Corruption, Emphasis, check_corruption
from .losses import get_loss
from .philox import MOST_DRAWS

REDUCTIONS = ("mean", "sum", "none")
CODE_NOISES = ("none", "gaussian", "bernoulli")

F = TypeVar("F", bound=Callable[..., Any])
ObjectiveT = TypeVar("ObjectiveT", bound="Objective")


class AutoencoderLoss(NamedTuple):
    """The value of an autoencoder's objective and of its terms.

    ``total`` is the weighted sum; the other terms come without their weights, so that runs with different
    weights compare, and are ``None`` where the weight is 0 (they are not computed). All are differentiable.
    Means over rows of sums over features or units; with ``reduction="none"`` all but ``kl`` are [M]. ``kl``
    is always the divergence itself, which every row's total contains once.
    """

    total: Tensor
    reconstruction: Tensor
    contractive: Tensor | None = None
    higher_order: Tensor | None = None
    l1: Tensor | None = None
    kl: Tensor | None = None


# exported programs name the types that they return
torch.utils._pytree._register_namedtuple(AutoencoderLoss, serialized_type_name="fastae.AutoencoderLoss")


@dataclass(frozen=True)
class Objective:
    """The options of an autoencoder's objective; all are independent of each other.

    ``L = mean_n l_n + contractive mean_n P_n + higher_order mean_n C_n + l1 mean_n sum_j |h_nj|
    + kl sum_j KL(kl_target || mean_n h_nj)``: sums over features and units, means over rows.

    Attributes:
        activation: activation of the code: a name in :data:`fastae.activations.ACTIVATIONS`.
        loss: reconstruction loss, a sum over features: ``"bce"`` for data in [0, 1], ``"mse"``, ``"huber"``,
            which is less sensitive to outliers, ``"cosine"`` for the direction of rows alone, or for counts
            ``"poisson"`` and ``"negative_binomial"``. A number may follow: ``"huber:0.5"`` is linear beyond
            errors of 0.5, and the variance of ``"negative_binomial:10"`` is m + m^2 / 10 for the mean m; both
            are 1 by default.
        output_activation: activation of the reconstruction, for mse, huber and cosine.
        missing: whether NaN in the rows stands for missing entries, which have no loss; the encoder sees 0 in
            their place.
        corruption: corruption of the input while training (Vincent et al. 2010).
        emphasis: weights of the loss on corrupted and on clean entries (Vincent et al. 2010, sec. 4.3).
        contractive: weight of the penalty P = ||dh/dx||_F^2 (Rifai et al. 2011a).
        higher_order: weight of C = E ||J(x) - J(x + e)||_F^2, the change of the Jacobian near a row
            (Rifai et al. 2011b).
        higher_order_std: standard deviation of e.
        higher_order_samples: draws of e per row, each of which costs one more encoder product.
        l1: weight of the sum of the code's magnitudes.
        kl: weight of the divergence of the units' mean activations from ``kl_target``; for codes in [0, 1].
        kl_target: mean activation that the divergence asks for.
        code_noise: noise on the code that the decoder sees while training: ``"none"``; ``"gaussian"``; or
            ``"bernoulli"``, binary draws whose gradient passes straight through, for codes in [0, 1].
        code_noise_std: standard deviation of gaussian noise on the code.
        dropout: probability that a unit is dropped from the decoder's input while training; the others are
            scaled by 1 / (1 - dropout). Penalties see the code without noise and dropout.

    Raises:
        ValueError: an option that does not fit, named.
    """

    activation: str = "sigmoid"
    loss: str = "bce"
    output_activation: str = "linear"
    missing: bool = False
    corruption: Corruption | None = None
    emphasis: Emphasis | None = None
    contractive: float = 0.0
    higher_order: float = 0.0
    higher_order_std: float = 0.1
    higher_order_samples: int = 1
    l1: float = 0.0
    kl: float = 0.0
    kl_target: float = 0.05
    code_noise: str = "none"
    code_noise_std: float = 0.1
    dropout: float = 0.0

    def __post_init__(self) -> None:
        f = get_activation(self.activation)
        get_loss(self.loss, self.output_activation)
        check_name("code_noise", self.code_noise, CODE_NOISES)
        check_corruption(self.corruption)
        self._check_emphasis()
        for name in ("contractive", "higher_order", "l1", "kl", "code_noise_std"):
            check_nonnegative(f"{name}:", getattr(self, name))
        check_share("dropout:", self.dropout)
        samples, std = self.higher_order_samples, self.higher_order_std
        counted = fits(samples, lambda v: 1 <= operator.index(v) <= MOST_DRAWS)
        if self.higher_order and not (counted and fits(std, lambda v: v > 0.0)):
            raise ValueError(
                f"higher_order: needs higher_order_samples in 1..{MOST_DRAWS} and higher_order_std > 0, got "
                f"{samples!r} and {std!r}"
            )
        if (self.kl or self.code_noise == "bernoulli") and not f.in_unit_interval:
            name = "kl" if self.kl else "code_noise"
            raise ValueError(
                f"{name}: needs codes in [0, 1] (activation='sigmoid'), got activation={self.activation!r}"
            )
        if self.kl and not fits(self.kl_target, lambda v: 0.0 < v < 1.0):
            raise ValueError(f"kl_target: must be in (0, 1), got {self.kl_target!r}")

    def _check_emphasis(self) -> None:
        if self.emphasis is None:
            return
        if not isinstance(self.emphasis, Emphasis):
            given = f"{type(self.emphasis).__name__} {self.emphasis!r}"
            raise ValueError(f"emphasis: expected Emphasis or None, got {given}")
        if self.corruption is None or self.corruption.event is None:
            raise ValueError(
                "emphasis: needs a corruption that leaves entries clean (masking, salt_and_pepper, swap)"
            )

    @property
    def perturbs_code(self) -> bool:
        """True if the decoder sees another code than the encoder gives."""
        return self.code_noise != "none" or self.dropout != 0.0

    @property
    def random(self) -> bool:
        """True if the objective draws random numbers."""
        return self.corruption is not None or self.perturbs_code or self.higher_order != 0.0

    @property
    def reconstruction_activation(self) -> str:
        """Activation that turns the decoder's product into the reconstruction."""
        return get_loss(self.loss).reconstruction_activation(self.output_activation)

    @property
    def code_in_unit_interval(self) -> bool:
        return get_activation(self.activation).in_unit_interval

    def without_noise(self: ObjectiveT) -> ObjectiveT:
        """The objective as it is evaluated: no corruption, no noise on the code, no dropout."""
        if self.corruption is None and not self.perturbs_code:
            return self
        return replace(self, corruption=None, emphasis=None, code_noise="none", dropout=0.0)


class ObjectiveOptions(TypedDict, total=False):
    """Types of :class:`Objective`'s fields as keyword arguments."""

    activation: str
    loss: str
    output_activation: str
    missing: bool
    corruption: Corruption | None
    emphasis: Emphasis | None
    contractive: float
    higher_order: float
    higher_order_std: float
    higher_order_samples: int
    l1: float
    kl: float
    kl_target: float
    code_noise: str
    code_noise_std: float
    dropout: float


def kl_count(reduction: str, rows: int) -> int:
    """Number of times the reduced total contains the divergence: every row's total does so once."""
    return rows if reduction == "sum" else 1


def attribute_docs(options: type) -> dict[str, str]:
    """The lines of a dataclass's "Attributes" section by field, those of its bases first."""
    docs: dict[str, str] = {}
    for cls in reversed(options.__mro__):
        _, _, section = (cls.__doc__ or "").partition("    Attributes:\n")
        name = ""
        for line in section.splitlines():
            text = line.strip()
            if not line.startswith(" " * 8):  # the section ends
                break
            if line.startswith(" " * 12):
                docs[name] += " " + text
            else:
                name, _, docs[name] = text.partition(": ")
    return docs


def takes_options(options: type, *, without: Collection[str] = ()) -> Callable[[F], F]:
    """Spell a dataclass's fields in the signature and docstring of a function that takes ``**options``."""

    def decorate(function: F) -> F:
        taken = [f for f in fields(options) if f.name not in without]
        signature = inspect.signature(function)
        own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        spelled = [
            inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default, annotation=f.type)
            for f in taken
        ]
        parameters = sorted([*own, *spelled], key=lambda p: p.kind)  # positional ones first
        function.__signature__ = signature.replace(parameters=parameters)  # pyright: ignore[reportFunctionMemberAccess]
        docs = attribute_docs(options)
        lines = [f"    {f.name}: {docs[f.name]}" for f in taken if f.name in docs]
        function.__doc__ = "\n".join([inspect.getdoc(function) or "", "", "Options:", *lines, ""])
        return function

    return decorate
