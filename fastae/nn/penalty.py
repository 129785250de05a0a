"""Contractive penalties of encoders that are called as modules, whose weights may be whole only meanwhile."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import functional, ops
from ..activations import get_activation
from ..philox import STREAM_PROBE, draw_seed
from ..tensors import as_rows, is_split, sum_dtype

if TYPE_CHECKING:
    from .autoencoder import Autoencoder


def encoder_penalty(x: Tensor, layer: Autoencoder) -> Tensor:
    """The contractive penalty of a layer's encoder per row, from the weight as it is after a call.

    Raises:
        ValueError: the encoder is sharded by itself, so that its weight is not whole outside its call.
    """
    weight, bias = _whole(layer)
    return functional.contractive_encode(x, weight, bias, layer.options.activation, reduction="none")[1]


def deep_penalty(
    x: Tensor, layers: Sequence[Autoencoder], probes: int, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """The code [M, H] of a stack and ||dcode/dx||_F^2 per row [M], one layer at a time.

    The estimate is that of :func:`fastae.functional.deep_contractive_encode`, with its draws. Layers are
    called, once for the code and once per probe, so that no more than one weight has to be whole.

    Args:
        x: [*, D].
        layers: from the input on.
        probes: random probes per row.
        generator: of the probes.

    Raises:
        ValueError: an encoder is sharded by itself, so that its weight is not whole outside its call.
    """
    seed = draw_seed(x.device, generator)
    code, slopes = as_rows(x), []
    for layer in layers:
        code, slope = layer.run(_code_and_slope, code)
        slopes.append(slope)
    penalty = torch.zeros(len(code), dtype=sum_dtype(x.dtype), device=x.device)
    for k in range(probes):
        w = ops.random_signs(code.detach(), seed, STREAM_PROBE + k).to(penalty.dtype)
        for layer, slope in zip(reversed(layers), reversed(slopes), strict=True):
            w = layer.run(partial(_pull_back, slope), w)
        penalty = penalty + w.square().sum(1, dtype=penalty.dtype)
    return code, penalty / probes


def _code_and_slope(layer: Autoencoder, x: Tensor) -> tuple[Tensor, Tensor]:
    """The code [M, H] of x [M, D], and f'(z) of the units held here as a differentiable function of it."""
    f, shard = get_activation(layer.options.activation), layer.shard
    z = F.linear(x if shard is None else shard.shared(x), *_whole(layer))
    wide = z.to(sum_dtype(z.dtype))
    code = f.function(wide)
    slope, code = f.derivative(code, wide), code.to(z.dtype)
    return code if shard is None else shard.join(code), slope


def _pull_back(slope: Tensor, layer: Autoencoder, w: Tensor) -> Tensor:
    """(w s) W, [M, D]: a row vector [M, H] times the Jacobian of a layer."""
    weight, shard = _whole(layer)[0], layer.shard
    if shard is None:
        return torch.mm((w * slope).to(weight.dtype), weight)
    return shard.sum(torch.mm((shard.part(w) * slope).to(weight.dtype), weight))


def _whole(layer: Autoencoder) -> tuple[Tensor, Tensor | None]:
    weight, bias = layer.encoder.weight, layer.encoder.bias
    if is_split(weight):
        raise ValueError("contractive: needs whole weights, but encoders are sharded; shard their layers")
    return weight, bias
