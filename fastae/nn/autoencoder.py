"""One autoencoder of one layer, with every regulariser as an option."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import functional
from ..activations import get_activation
from ..checks import check_whole
from ..gradients import UnitShard
from ..plain import Parts
from ..tensors import fill_missing
from .calls import reads_like_its_class, runs_code
from .encoder import EncoderLayer
from .options import OptionChanges, Options
from .penalty import encoder_penalty
from .sampling import Sampler

if TYPE_CHECKING:
    from typing_extensions import Unpack

R = TypeVar("R")


@reads_like_its_class
class TiedDecoder(nn.Module):
    """The bias of a decoder whose weight is the encoder's."""

    bias: nn.Parameter | None

    def __init__(self, out_features: int, bias: bool, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        self.out_features = out_features
        parameter = nn.Parameter(torch.zeros(out_features, device=device, dtype=dtype)) if bias else None
        self.register_parameter("bias", parameter)

    def forward(self, code: Tensor, weight: Tensor) -> Tensor:
        """The product [*, out_features] of a code [*, H] with the encoder's weight [H, out_features]."""
        return F.linear(code, weight.t(), self.bias)

    def extra_repr(self) -> str:
        return f"out_features={self.out_features}, bias={self.bias is not None}, weight tied"


@reads_like_its_class
class Autoencoder(Sampler):
    """An autoencoder with a one-layer encoder and decoder; all kinds can be combined.

    Parameters are named as in ``nn.Linear``: ``encoder.weight`` [code, in], ``encoder.bias``,
    ``decoder.bias`` and, untied, ``decoder.weight`` [in, code].

    Args:
        in_features: width of the input, D.
        code_features: width of the code, H.
        options: an :class:`Options`; the keyword arguments below change single ones.
        **changes: any of :class:`Options`: activation, loss, tied, corruption, contractive, ...

    Raises:
        ValueError, TypeError: an argument that does not fit, named.
    """

    def __init__(
        self,
        in_features: int,
        code_features: int,
        options: Options | None = None,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **changes: Unpack[OptionChanges],
    ) -> None:
        super().__init__()
        in_features = check_whole("in_features:", in_features)
        code_features = check_whole("code_features:", code_features)
        self.options = Options.make(options, {**changes})
        bias, place = self.options.bias, {"device": device, "dtype": dtype}
        self.encoder = EncoderLayer(in_features, code_features, self.options.activation, bias, **place)  # pyright: ignore[reportArgumentType]
        self.decoder: TiedDecoder | nn.Linear = (
            TiedDecoder(in_features, bias, **place)
            if self.options.tied
            else nn.Linear(code_features, in_features, bias, **place)  # pyright: ignore[reportArgumentType]
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Zero biases; uniform weights after Glorot and Bengio (2010), times 4 for the sigmoid."""
        modules = [(self.encoder, self.options.activation)]
        if isinstance(self.decoder, nn.Linear):
            modules.append((self.decoder, self.options.reconstruction_activation))  # pyright: ignore[reportArgumentType]
        for module, activation in modules:
            nn.init.xavier_uniform_(module.weight, _GAINS.get(activation, 1.0))
        for bias in (self.encoder.bias, self.decoder.bias):
            if bias is not None:
                nn.init.zeros_(bias)

    @property
    def in_features(self) -> int:
        return self.encoder.in_features

    @property
    def code_features(self) -> int:
        return self.encoder.out_features

    @property
    def shard(self) -> UnitShard | None:
        """The units that this process holds; ``None`` where it holds all."""
        return self.encoder.shard

    @property
    def decoder_weight(self) -> Tensor:
        """V [in, code], of the units held here; the encoder's weight, transposed, where tied."""
        return self.decoder.weight if isinstance(self.decoder, nn.Linear) else self.encoder.weight.t()

    def forward(
        self,
        x: Tensor,
        *,
        entry_weight: Tensor | None = None,
        reduction: str = "mean",
        generator: torch.Generator | None = None,
        within: Callable[[Autoencoder, Tensor], Any] | None = None,
    ) -> Any:
        """The objective on x [*, in], an :class:`AutoencoderLoss`; noise only in training mode.

        The objective reads the parameters of encoder and decoder. Where one of them has hooks or a forward of
        its own, both are called instead. A warning names values that the loss is not defined for, such as
        those outside of [0, 1] for bce; only the first batch in training mode is checked.

        Args:
            x: input, [*, in].
            entry_weight, reduction, generator: as in :func:`fastae.functional.autoencoder_loss`.
            within: a function of this module and x to return instead, called with the module's hooks around
                it. Stacks use it for layers that are sharded one by one.
        """
        if within is not None:
            return within(self, x)
        self._check_range(x)
        options = self.options if self.training else self.options.without_noise()
        given: Any = {"entry_weight": entry_weight, "reduction": reduction, "generator": generator}
        if runs_code(self.encoder) or runs_code(self.decoder):
            self._check_whole()
            return functional.parts_loss(x, self._parts(), options, **given)
        return functional.objective_loss(
            x,
            self.encoder.weight,
            self.encoder.bias,
            self.decoder.weight if isinstance(self.decoder, nn.Linear) else None,
            self.decoder.bias,
            options,
            shard=self.shard,
            **given,
        )

    def _parts(self) -> Parts:
        encoder = self.encoder

        def encode_and_penalty(x: Tensor) -> tuple[Tensor, Tensor]:
            return encoder(x), encoder_penalty(x, self)

        decode = self.decoder_product
        return Parts(encoder, encode_and_penalty, decode, lambda: (encoder.weight, encoder.bias))

    def run(self, function: Callable[[Autoencoder, Tensor], R], x: Tensor) -> R:
        """``function(self, x)``, within a call of this module if it has hooks."""
        return self(x, within=function) if runs_code(self) else function(self, x)

    def decoder_product(self, code: Tensor) -> Tensor:
        """The product a = h V^T + c, [*, in], of a code [*, code]."""
        if self.shard is not None:
            if runs_code(self.decoder):
                self._check_whole()
            product = self.shard.sum(F.linear(self.shard.part(code), self.decoder_weight))
            return product if self.decoder.bias is None else product + self.decoder.bias.to(product.dtype)
        if isinstance(self.decoder, nn.Linear):
            return self.decoder(code)
        return self.decoder(code, self.encoder.weight)

    def _check_whole(self) -> None:
        """Refuse to call an encoder or a decoder of which this process holds some units."""
        if self.shard is not None:
            raise ValueError(
                "module: expected no hooks of an encoder or a decoder whose units are spread over processes; "
                "hooks of the Autoencoder run"
            )

    def encode(self, x: Tensor) -> Tensor:
        """The code [*, code] of x [*, in], without noise."""
        return self.encoder(fill_missing(x, self.options.missing))

    def decode(self, code: Tensor) -> Tensor:
        """The reconstruction [*, in] from a code [*, code]: of likelihoods the mean."""
        activation = self.options.reconstruction_activation
        if runs_code(self.decoder) or self.shard is not None:
            return get_activation(activation).function(self.decoder_product(code))
        return functional.encode(code, self.decoder_weight, self.decoder.bias, activation)

    @property
    def input_options(self) -> Options:
        return self.options

    def extra_repr(self) -> str:
        defaults = Options()
        changed = {k: v for k, v in vars(self.options).items() if v != getattr(defaults, k)}
        return ", ".join(f"{name}={value!s}" for name, value in changed.items())


_GAINS = {"sigmoid": 4.0, "relu": 2.0**0.5, "leaky_relu": 2.0**0.5, "tanh": 5.0 / 3.0, "selu": 0.75}
