"""What kind of autoencoder a layer is: one immutable description for modules, checkpoints and commands."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from ..activations import get_activation
from ..arguments import check_objective
from ..corruption import Corruption, Emphasis, parse_corruption


@dataclass(frozen=True)
class Options:
    """The options of an autoencoder, all independent; see :func:`fastae.functional.autoencoder_loss`.

    Attributes:
        activation: of the code.
        loss: ``"bce"`` for data in [0, 1], or ``"mse"``. Both sum over features.
        output_activation: of the reconstruction, for mse.
        tied: whether the decoder's weight is the encoder's, transposed.
        corruption: of the input while training; a corruption or text such as ``"masking:0.25"``.
        emphasis: weighs the loss of corrupted and of clean entries apart.
        contractive: weight of ||dh/dx||_F^2.
        higher_order, higher_order_std, higher_order_samples: weight of E ||J(x) - J(x + e)||_F^2 and its e.
        l1: weight of the codes' absolute sum.
        kl, kl_target: weight of KL(kl_target || mean activation), summed over units.
        code_noise, code_noise_std: ``"none"``, ``"gaussian"`` or ``"bernoulli"`` codes while training.
        dropout: share of the code's units dropped while training.
        bias: whether encoder and decoder have biases.
    """

    activation: str = "sigmoid"
    loss: str = "bce"
    output_activation: str = "linear"
    tied: bool = True
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
    bias: bool = True

    def __post_init__(self) -> None:
        if isinstance(self.corruption, str):
            object.__setattr__(self, "corruption", parse_corruption(self.corruption))
        check_objective(**{name: getattr(self, name) for name in _OBJECTIVE})

    @property
    def reconstruction_activation(self) -> str:
        """The activation that turns the decoder's product into the reconstruction."""
        return "sigmoid" if self.loss == "bce" else self.output_activation

    @property
    def code_in_unit_interval(self) -> bool:
        return get_activation(self.activation).in_unit_interval

    def objective(self, training: bool) -> dict[str, Any]:
        """The keyword arguments of :func:`fastae.functional.autoencoder_loss`; no noise outside training."""
        values = {name: getattr(self, name) for name in _OBJECTIVE}
        if not training:
            values.update(corruption=None, emphasis=None, code_noise="none", dropout=0.0)
        return values

    def to_dict(self) -> dict[str, Any]:
        """Plain values that JSON can hold; :meth:`from_dict` turns them back."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        values["corruption"] = "none" if self.corruption is None else str(self.corruption)
        values["emphasis"] = None if self.emphasis is None else asdict(self.emphasis)
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Options:
        """Raises ``ValueError`` or ``TypeError`` naming what does not fit."""
        emphasis = values.get("emphasis")
        return cls(**{**values, "emphasis": None if emphasis is None else Emphasis(**emphasis)})

    @staticmethod
    def make(base: Options | None, changes: dict[str, Any]) -> Options:
        """``base`` (or the defaults) with ``changes``; ``TypeError`` for an option that does not exist."""
        for name in changes:
            if name not in Options.__dataclass_fields__:
                raise TypeError(
                    f"{name}: no such option; the options are {', '.join(Options.__dataclass_fields__)}"
                )
        return replace(base or Options(), **changes)


_OBJECTIVE = tuple(field.name for field in fields(Options) if field.name not in ("tied", "bias"))
