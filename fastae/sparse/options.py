"""The objective of a sparse autoencoder as one immutable description."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from ..checks import check_name, check_nonnegative, check_positive
from .specs import AuxK, BatchTopK, JumpReLU, Matryoshka, Sparsity, TopK, parse_sparsity

NORMALIZATIONS = ("none", "layer_norm", "norm")


@dataclass(frozen=True)
class SparseObjective:
    """The options of :func:`fastae.functional.sparse_autoencoder_loss` that are not tensors.

    Attributes:
        activation: the sparsity rule, or its text such as ``"topk:32"``.
        center: whether the decoder's bias is subtracted from the input.
        auxk: the auxiliary loss for dead latents.
        matryoshka: nested prefixes of the dictionary that reconstruct on their own.
        l1: weight of the sum of activations times the norms of their decoder rows.
        l0: weight of the number of active latents (jump_relu).
        l0_target: penalise the squared relative distance of that number from this one instead.
    """

    activation: Sparsity = field(default_factory=lambda: TopK(32))
    center: bool = True
    auxk: AuxK | None = None
    matryoshka: Matryoshka | None = None
    l1: float = 0.0
    l0: float = 0.0
    l0_target: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "activation", parse_sparsity(self.activation))
        for name, kind in (("auxk", AuxK), ("matryoshka", Matryoshka)):
            value = getattr(self, name)
            if value is not None and not isinstance(value, kind):
                raise ValueError(f"{name}: expected {kind.__name__} or None, got {type(value).__name__}")
        check_nonnegative("l1:", self.l1)
        check_nonnegative("l0:", self.l0)
        if self.l0 and not isinstance(self.activation, JumpReLU):
            raise ValueError(f"l0: needs a jump_relu activation, got {self.activation}")
        if self.l0_target is not None:
            check_positive("l0_target:", self.l0_target)

    def check_latents(self, latents: int) -> None:
        """Raise ``ValueError`` unless the options fit a dictionary of so many latents."""
        rule = self.activation
        if isinstance(rule, TopK | BatchTopK) and rule.k > latents:
            raise ValueError(f"activation: expected k of at most {latents} latents, got {rule}")
        if self.matryoshka is not None and self.matryoshka.widths[-1] != latents:
            widths = list(self.matryoshka.widths)
            raise ValueError(f"matryoshka: expected the last width to be {latents} latents, got {widths}")


@dataclass(frozen=True)
class SparseOptions(SparseObjective):
    """The options of :class:`fastae.nn.SparseAutoencoder`.

    Attributes:
        skip: whether the output has a linear term of the input (skip transcoders; Paulo et al. 2025).
        normalization: of each row before the encoder, undone after the decoder: ``"layer_norm"`` subtracts
            the mean over features and divides by the standard deviation (unbiased, plus 1e-5; undone without
            the 1e-5, as in files of others); ``"norm"`` scales the norm to the square root of the width.
    """

    skip: bool = False
    normalization: str = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_name("normalization", self.normalization, NORMALIZATIONS)

    def to_dict(self) -> dict[str, Any]:
        """Plain values that JSON can hold; :meth:`from_dict` turns them back."""
        return {**asdict(self), "activation": str(self.activation)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> SparseOptions:
        """Raise ``ValueError`` or ``TypeError`` naming what does not fit."""
        values = dict(values)
        for name, kind in (("auxk", AuxK), ("matryoshka", Matryoshka)):
            if values.get(name) is not None:
                values[name] = kind(**values[name])
        return cls(**values)
