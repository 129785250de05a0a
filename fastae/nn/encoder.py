"""A linear layer and its activation as one fused layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .. import functional
from ..activations import get_activation
from ..gradients import UnitShard
from .calls import reads_like_its_class, runs_code


@reads_like_its_class
class EncoderLayer(nn.Linear):
    """``nn.Linear`` followed by an activation, fused; same parameters, initialisation and state_dict.

    Attributes:
        shard: the units that this process holds, where :func:`fastae.distributed.shard_units` has split the
            layer; codes are those of all units.

    Args:
        in_features, out_features, bias, device, dtype: as in ``nn.Linear``.
        activation: one of the names in :data:`fastae.activations.ACTIVATIONS`.
    """

    shard: UnitShard | None = None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        activation: str = "sigmoid",
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        get_activation(activation)
        super().__init__(in_features, out_features, bias, device, dtype)
        self.activation = activation

    @classmethod
    def from_linear(cls, linear: nn.Linear, activation: str) -> EncoderLayer:
        """A fused layer that shares the parameters of ``linear``."""
        get_activation(activation)
        layer = cls.__new__(cls)
        # copies of the dictionaries: a registration in one layer must not appear in the other
        vars(layer).update({k: v.copy() if isinstance(v, dict) else v for k, v in vars(linear).items()})
        layer.activation = activation
        return layer

    def forward(self, x: Tensor) -> Tensor:
        """The code f(x W^T + b), [*, out_features], of x [*, in_features]."""
        if self.shard is None:
            return functional.encode(x, self.weight, self.bias, self.activation)
        own = functional.encode(self.shard.shared(x), self.weight, self.bias, self.activation)
        return self.shard.join(own)

    def contractive(self, x: Tensor, *, reduction: str = "mean") -> tuple[Tensor, Tensor]:
        """The code and the contractive penalty; see :func:`fastae.functional.contractive_encode`.

        Where the layer has hooks, it is called first, and the penalty is that of its parameters after that.
        """
        called = self(x) if runs_code(self) else None
        layer = self.weight, self.bias, self.activation
        if self.shard is None:
            code, penalty = functional.contractive_encode(x, *layer, reduction=reduction)
        else:
            code, penalty = functional.contractive_encode(self.shard.shared(x), *layer, reduction=reduction)
            code, penalty = self.shard.join(code), self.shard.sum(penalty)
        return code if called is None else called, penalty

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, activation={self.activation!r}"
