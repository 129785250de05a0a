"""Deep autoencoders: stacks that are pretrained layer by layer and fine-tuned as a whole."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from .. import functional
from ..activations import get_activation
from ..checks import check_share, check_whole
from ..losses import get_loss
from ..objective import AutoencoderLoss, Objective
from ..philox import MOST_DRAWS
from ..plain import Parts
from ..share import Share, current_share, sharing
from .autoencoder import Autoencoder
from .calls import runs_code
from .dropout import RowDropout
from .missing import FillMissing
from .options import Options
from .penalty import deep_penalty
from .sampling import Sampler


class StackedAutoencoder(Sampler):
    """A stack of autoencoders: layer l reconstructs the code of layer l - 1.

    ``stack.layers[l]`` is trained on ``stack.encode(x, depth=l)`` (greedy pretraining); the stack itself is
    the unrolled deep autoencoder, all encoders and then all decoders, and ``stack(x)`` is its objective:

    - input corruption, emphasis, loss and its output activation are the first layer's options;
    - code noise, dropout, l1, kl and the contractive weight are the last layer's, the penalty being
      ||dcode/dx||_F^2 of the whole encoder, estimated without bias from ``probes`` random probes per row
      (exact and by the closed form where the stack has one layer). Higher-order contraction is for layers.

    Args:
        sizes: input width, then the width of each code: ``[784, 1000, 500]``.
        options: an :class:`Options`, or one per layer.
        probes: probes per row for the deep contractive penalty.
        **changes: any of :class:`Options`; a list or tuple gives one value per layer.

    Raises:
        ValueError, TypeError: an argument that does not fit, named.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        options: Options | Sequence[Options] | None = None,
        *,
        probes: int = 1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **changes: Any,
    ) -> None:
        super().__init__()
        sizes = list(sizes)
        if len(sizes) < 2:
            raise ValueError(f"sizes: needs the input's width and at least one code's, got {sizes}")
        try:
            sizes = [check_whole("sizes:", size) for size in sizes]
        except ValueError:
            raise ValueError(f"sizes: must be whole numbers >= 1, got {sizes}") from None
        self.probes = check_whole("probes:", probes, most=MOST_DRAWS)
        layer_options = layerwise_options(len(sizes) - 1, options, changes)
        self.layers = nn.ModuleList(
            Autoencoder(d, h, o, device=device, dtype=dtype)
            for d, h, o in zip(sizes, sizes[1:], layer_options, strict=False)
        )

    @property
    def autoencoders(self) -> list[Autoencoder]:
        """The layers, typed."""
        return [layer for layer in self.layers if isinstance(layer, Autoencoder)]

    @property
    def sizes(self) -> list[int]:
        """Input width, then the width of each code."""
        layers = self.autoencoders
        return [layers[0].in_features, *(layer.code_features for layer in layers)]

    def encode(self, x: Tensor, depth: int | None = None) -> Tensor:
        """The code [*, sizes[depth]] of x [*, sizes[0]] after ``depth`` layers (default: all; 0: x)."""
        if depth is not None and not 0 <= depth <= len(self.layers):
            raise ValueError(f"depth: must be in 0..{len(self.layers)}, got {depth!r}")
        for layer in self.autoencoders[:depth]:
            x = layer.run(Autoencoder.encode, x)
        return x

    def decode(self, code: Tensor) -> Tensor:
        """The reconstruction [*, sizes[0]] from the last layer's code [*, sizes[-1]]."""
        for layer in reversed(self.autoencoders):
            code = layer.run(Autoencoder.decode, code)
        return code

    @property
    def input_options(self) -> Options:
        return self.autoencoders[0].options

    def forward(
        self,
        x: Tensor,
        *,
        entry_weight: Tensor | None = None,
        reduction: str = "mean",
        generator: torch.Generator | None = None,
    ) -> AutoencoderLoss:
        """The objective of the unrolled deep autoencoder on x [*, sizes[0]]; noise only in training mode.

        Args:
            x: input, [*, sizes[0]].
            entry_weight, reduction, generator: as in :func:`fastae.functional.deep_autoencoder_loss`.
        """
        layers = self.autoencoders
        given: Any = {"entry_weight": entry_weight, "reduction": reduction, "generator": generator}
        if len(layers) == 1:
            return layers[0](x, **given)
        self._check_range(x)
        spread = any(layer.shard is not None for layer in layers)
        if spread or any(runs_code(p) for layer in layers for p in (layer, layer.encoder, layer.decoder)):
            objective = Objective(
                **self._deep_options(),
                activation=layers[-1].options.activation,
                output_activation=layers[0].options.output_activation,
            )
            parts = self._parts(generator)
            share = current_share()
            if spread and share is None:  # the same noise in all processes
                share = Share(max(x[..., 0].numel(), 1), 0, 1)
            with sharing(share):
                return functional.deep_parts_loss(x, parts, objective, **given)
        return functional.deep_autoencoder_loss(
            x,
            [(layer.encoder.weight, layer.encoder.bias, layer.options.activation) for layer in layers],
            [
                (layer.decoder_weight, layer.decoder.bias, layer.options.reconstruction_activation)
                for layer in layers[:0:-1]
            ]
            + [(layers[0].decoder_weight, layers[0].decoder.bias, layers[0].options.output_activation)],
            probes=self.probes,
            **given,
            **self._deep_options(),
        )

    def _parts(self, generator: torch.Generator | None) -> Parts:
        first, *others = self.autoencoders

        def decode(code: Tensor) -> Tensor:
            for layer in reversed(others):
                code = layer.run(Autoencoder.decode, code)
            return first.run(Autoencoder.decoder_product, code)

        def encode_and_penalty(x: Tensor) -> tuple[Tensor, Tensor]:
            layers = [first, *others]
            called = self.encode(x) if any(runs_code(layer.encoder) for layer in layers) else None
            code, penalty = deep_penalty(x, layers, self.probes, generator)
            return code if called is None else called, penalty

        layer = first.encoder
        return Parts(self.encode, encode_and_penalty, decode, lambda: (layer.weight, layer.bias))

    def _deep_options(self) -> dict[str, Any]:
        """The options of the deep objective: the input's from the first layer, the code's from the last."""
        options = [layer.options for layer in self.autoencoders]
        if not self.training:
            options = [o.without_noise() for o in options]
        return {name: getattr(options[l], name) for name, l in _DEEP.items()}

    def encoder(self) -> nn.Sequential:
        """The encoders alone, as modules that share this stack's parameters."""
        return nn.Sequential(*self._input_modules().values(), *(layer.encoder for layer in self.autoencoders))

    def _input_modules(self) -> dict[str, nn.Module]:
        """Modules before the first encoder."""
        return {"observed": FillMissing()} if self.input_options.missing else {}

    def classifier(self, classes: int, dropout: float = 0.0, input_dropout: float = 0.0) -> nn.Sequential:
        """The encoders and a new linear layer of ``classes`` logits, for supervised fine-tuning.

        Modules ``encoder1``, ..., ``head``, whose names, and so the keys of the state dict, do not depend on
        dropout. The encoders' parameters are this stack's own, which stops being a good autoencoder as they
        are fine-tuned: take ``copy.deepcopy(stack).classifier(n)`` to keep both. The logits start at zero, so
        that the first steps do not destroy what was pretrained.

        Args:
            classes: number of logits K.
            dropout: share of every code that is dropped while training (Srivastava et al. 2014).
            input_dropout: share of the input's entries that is dropped while training.

        Raises:
            ValueError: an argument that does not fit, named.
        """
        classes = check_whole("classes:", classes, 2)
        check_share("dropout:", dropout)
        check_share("input_dropout:", input_dropout)
        modules = self._input_modules()
        if input_dropout:
            modules["input_dropout"] = RowDropout(input_dropout)
        for number, layer in enumerate(self.autoencoders, 1):
            modules[f"encoder{number}"] = layer.encoder
            if dropout:
                modules[f"dropout{number}"] = RowDropout(dropout)
        weight = self.autoencoders[-1].encoder.weight
        head = nn.Linear(self.sizes[-1], classes, device=weight.device, dtype=weight.dtype)
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
        return nn.Sequential(OrderedDict(modules, head=head))


_DEEP = {"loss": 0, "missing": 0, "corruption": 0, "emphasis": 0} | dict.fromkeys(
    ("contractive", "l1", "kl", "kl_target", "code_noise", "code_noise_std", "dropout"), -1
)
"""The layer that each option of the deep objective is taken from."""


def layerwise_options(
    depth: int, options: Options | Sequence[Options] | None, changes: dict[str, Any]
) -> list[Options]:
    """One :class:`Options` per layer, from single values and values per layer.

    Raises:
        ValueError: a number of values other than ``depth``, or a loss that codes below do not fit.
    """
    if isinstance(options, Options) or options is None:
        options = [options or Options()] * depth
    elif len(options) != depth:
        raise ValueError(f"options: got {len(options)} for {depth} layers")
    per_layer: list[dict[str, Any]] = [{} for _ in range(depth)]
    for name, value in changes.items():
        values = value if isinstance(value, list | tuple) else [value] * depth
        if len(values) != depth:
            raise ValueError(f"{name}: got {len(values)} values for {depth} layers")
        for layer, one in zip(per_layer, values, strict=True):
            layer[name] = one
    result = [Options.make(base, change) for base, change in zip(options, per_layer, strict=True)]
    for l in range(1, depth):
        result[l] = replace(result[l], missing=False)  # NaN in a code stands for nothing
        below = get_activation(result[l - 1].activation)
        loss = get_loss(result[l].loss)
        if not loss.takes(*below.bounds):
            low, high = loss.bounds
            losses = [o.loss for o in result[:l]] + ["mse"] * (depth - l)
            raise ValueError(
                f"loss: layer {l + 1} reconstructs {below.name} codes, which are not in [{low:g}, {high:g}] "
                f"as {result[l].loss} needs; use loss={losses}"
            )
    return result
