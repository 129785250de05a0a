"""Sparsity rules of a dictionary's code and the terms of its objective: small immutable descriptions.

A sparsity rule turns into text and back by ``str(rule)`` and :func:`parse_sparsity` (``"topk:32"``).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from ..checks import check_name, check_nonnegative, check_positive, check_share, check_whole


class Sparsity:
    """Base of the rules that make a code sparse; use one of its subclasses."""

    kind: ClassVar[str]
    selects: ClassVar[bool] = False
    """True if the number of entries is fixed, rather than found by comparing with a threshold."""

    def __str__(self) -> str:
        values = [(f.default, getattr(self, f.name)) for f in fields(self)]  # pyright: ignore[reportArgumentType]
        while values and values[-1][0] == values[-1][1] and len(values) > 1:
            values.pop()
        return ":".join([self.kind, *(str(value) for _, value in values)])


@dataclass(frozen=True)
class TopK(Sparsity):
    """The ``k`` largest entries of each row, then ReLU (Makhzani and Frey 2013; Gao et al. 2024, sec. 2.3).

    Ties go to the lower latent. Where fewer than ``k`` entries are positive, the rest of them are 0.
    """

    k: int
    kind: ClassVar[str] = "topk"
    selects: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "k", check_whole("TopK: k", self.k))


@dataclass(frozen=True)
class BatchTopK(Sparsity):
    """The ``int(k N)`` largest positive entries of a batch of N rows (Bussmann et al. 2024).

    Ties go to the lower row, then to the lower latent. Inference compares with a threshold instead: a running
    average, with ``momentum``, of the least value kept per training batch.
    """

    k: float
    momentum: float = 0.999
    kind: ClassVar[str] = "batch_topk"
    selects: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_positive("BatchTopK: k", self.k)
        check_share("BatchTopK: momentum", self.momentum)


@dataclass(frozen=True)
class ReLU(Sparsity):
    """Every positive entry; sparse by an L1 penalty (Bricken et al. 2023)."""

    kind: ClassVar[str] = "relu"


@dataclass(frozen=True)
class JumpReLU(Sparsity):
    """z where z exceeds a learned threshold per latent, else 0 (Rajamanoharan et al. 2024b).

    The threshold's gradient is a straight-through estimate with a kernel K of width ``bandwidth``:
    ``-theta / bandwidth K((z - theta) / bandwidth)`` times the gradient of the code.

    Attributes:
        threshold: at the start of training, for every latent.
        bandwidth: width of the kernel.
        kernel: ``"rectangle"``, K(u) = 1 for \\|u\\| < 1/2, or ``"triangle"``, K(u) = max(0, 1 - \\|u\\|).
        to_input: whether the estimate reaches the pre-activation as well (Anthropic, January 2025 update).
    """

    threshold: float = 0.001
    bandwidth: float = 0.001
    kernel: str = "rectangle"
    to_input: bool = False
    kind: ClassVar[str] = "jump_relu"

    def __post_init__(self) -> None:
        check_nonnegative("JumpReLU: threshold", self.threshold)
        check_positive("JumpReLU: bandwidth", self.bandwidth)
        check_name("JumpReLU: kernel", self.kernel, KERNEL_REACH)

    @property
    def reach(self) -> float:
        """Pre-activations further than this from their threshold contribute nothing to its gradient."""
        return KERNEL_REACH[self.kernel] * self.bandwidth


@dataclass(frozen=True)
class Gated(Sparsity):
    """A gate and a magnitude per latent that share the encoder's directions (Rajamanoharan et al. 2024a).

    With u = x W^T the code is ``1[u + gate_bias > 0] relu(exp(magnitude) u + magnitude_bias)``.
    """

    kind: ClassVar[str] = "gated"


KERNEL_REACH = {"rectangle": 0.5, "triangle": 1.0}

SPARSITIES: dict[str, type[Sparsity]] = {cls.kind: cls for cls in (TopK, BatchTopK, ReLU, JumpReLU, Gated)}


def parse_sparsity(rule: Sparsity | str) -> Sparsity:
    """A rule from text such as ``"topk:32"``, ``"batch_topk:32:0.99"`` or ``"jump_relu:0.001"``.

    Numbers are the rule's attributes in order; those left out have their defaults. A rule is returned as is.

    Raises:
        ValueError: the text is not a rule; the message names the part that is wrong.
    """
    return rule if isinstance(rule, Sparsity) else _parsed(rule)


def _parsed(rule: str) -> Sparsity:
    if not isinstance(rule, str):
        raise ValueError(f"activation: expected a sparsity rule or its text, got {type(rule).__name__}")
    kind, *words = rule.strip().split(":")
    cls = SPARSITIES.get(kind.strip().lower().replace("-", "_"))
    if cls is None:
        raise ValueError(f"activation: {rule!r} is not one of {', '.join(SPARSITIES)} (as in 'topk:32')")
    options = fields(cls)  # pyright: ignore[reportArgumentType]
    if len(words) > len(options):
        names = ", ".join(option.name for option in options) or "no numbers"
        raise ValueError(f"activation: {rule!r} has {len(words)} numbers; {cls.kind} takes {names}")
    try:
        values = [_READERS[str(option.type)](word) for option, word in zip(options, words, strict=False)]
        return cls(*values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"activation: {rule!r} is not a rule ({error})") from None


# a compiled graph holds the rule itself
_parsed._dynamo_marked_constant = True  # pyright: ignore[reportFunctionMemberAccess]


def _boolean(word: str) -> bool:
    try:
        return {"true": True, "false": False}[word.lower()]
    except KeyError:
        raise ValueError(f"{word!r} is neither true nor false") from None


_READERS: dict[str, Any] = {"int": int, "float": float, "str": str, "bool": _boolean}


@dataclass(frozen=True)
class AuxK:
    """The auxiliary loss that revives dead latents: they reconstruct the residual (Gao et al. 2024, A.2).

    With the residual e held constant, A = mean_n \\|a_n W_dec - e_n\\|^2 where a_n has the ``k`` largest
    pre-activations among the dead latents.

    Attributes:
        weight: of the term in the total.
        k: dead latents per row; half of the output's width by default.
        dead_after: rows without an activation after which a latent counts as dead.
        normalize: ``"residual"`` divides by the residual's variance, ``"target"`` by the target's, ``"none"``
            by 1. Where the variance is 0 the term is 0.
        ramp: scale by the number of dead latents over ``k`` while there are fewer than ``k``.
        relu: whether negative pre-activations count as 0.
    """

    weight: float = 1 / 32
    k: int | None = None
    dead_after: int = 10_000_000
    normalize: str = "residual"
    ramp: bool = False
    relu: bool = True

    def __post_init__(self) -> None:
        check_nonnegative("AuxK: weight", self.weight)
        if self.k is not None:
            object.__setattr__(self, "k", check_whole("AuxK: k", self.k))
        object.__setattr__(self, "dead_after", check_whole("AuxK: dead_after", self.dead_after))
        check_name("AuxK: normalize", self.normalize, ("residual", "target", "none"))

    def width(self, out_features: int) -> int:
        """Dead latents per row, for an output of so many features."""
        return self.k if self.k is not None else max(1, out_features // 2)


@dataclass(frozen=True)
class Matryoshka:
    """Nested dictionaries: the first ``widths[g]`` latents reconstruct on their own (Bussmann et al. 2025).

    The reconstruction term becomes ``sum_g weights[g] mean_n |t_n - h_n[:m_g] W_dec[:m_g] - b_dec|^2``.

    Attributes:
        widths: prefix widths, rising; the last one is the number of latents.
        weights: one per prefix; 1 each by default.
    """

    widths: tuple[int, ...]
    weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        widths = tuple(check_whole("Matryoshka: widths", width) for width in self.widths)
        if not widths or any(a >= b for a, b in itertools.pairwise(widths)):
            raise ValueError(f"Matryoshka: widths must rise, got {list(self.widths)}")
        object.__setattr__(self, "widths", widths)
        if self.weights is not None:
            weights = tuple(float(weight) for weight in self.weights)
            if len(weights) != len(widths):
                raise ValueError(f"Matryoshka: got {len(weights)} weights for {len(widths)} widths")
            for weight in weights:
                check_nonnegative("Matryoshka: weights", weight)
            object.__setattr__(self, "weights", weights)

    @property
    def factors(self) -> tuple[float, ...]:
        """The weight of each prefix."""
        return self.weights or (1.0,) * len(self.widths)
