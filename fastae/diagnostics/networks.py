"""Inputs of the diagnostics: chains of layers in float32 or float64, and rows in chunks."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import ParamSpec, TypeAlias, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..activations import get_activation
from ..arguments import check_floating, check_linear
from ..functional import Layer
from ..nn import Autoencoder, EncoderLayer, StackedAutoencoder
from ..nn.calls import runs_code
from ..tensors import autocast_enabled, sum_dtype

Network: TypeAlias = (
    Autoencoder | StackedAutoencoder | EncoderLayer | nn.Sequential | Sequence[EncoderLayer] | Sequence[Layer]
)
"""An encoder: a module of :mod:`fastae.nn`, or, from the input on, a sequence of encoder layers or of tuples
(weight [out, in], bias [out] or ``None``, activation)."""

WORKSPACE = 1 << 22
"""Largest number of entries of a temporary tensor, unless a single row needs more."""

P = ParamSpec("P")
R = TypeVar("R")


def measurement(function: Callable[P, R]) -> Callable[P, R]:
    """Run a diagnostic without gradients and without autocast, which would round its products."""

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        tensor = next((a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)), None)
        with torch.no_grad():
            if tensor is None or not autocast_enabled(tensor.device.type):
                return function(*args, **kwargs)
            with torch.autocast(tensor.device.type, enabled=False):
                return function(*args, **kwargs)

    return wrapped


def autoencoders(model: Autoencoder | StackedAutoencoder) -> list[Autoencoder]:
    """The autoencoders of a model, from the input on."""
    if isinstance(model, Autoencoder):
        return [model]
    if isinstance(model, StackedAutoencoder):
        return model.autoencoders
    raise TypeError(f"model: expected an Autoencoder or a StackedAutoencoder, got {type(model).__name__}")


def encoder_layers(model: Network) -> list[Layer]:
    """The encoder of a network, from the input on."""
    if isinstance(model, Autoencoder | StackedAutoencoder):
        model = [layer.encoder for layer in autoencoders(model)]
    elif isinstance(model, EncoderLayer):
        model = [model]
    layers: list[Layer] = []
    for layer in model if isinstance(model, nn.Sequential | Sequence) else [model]:
        if isinstance(layer, EncoderLayer):
            layers.append(_read(layer, layer, lambda m=layer: (m.weight, m.bias, m.activation)))
        elif isinstance(layer, tuple) and len(layer) == 3:
            layers.append(layer)
        else:
            raise TypeError(
                "model: expected an Autoencoder, a StackedAutoencoder, EncoderLayers or a sequence of "
                f"(weight, bias, activation), got {type(model).__name__} with {type(layer).__name__}"
            )
    if not layers:
        raise ValueError("model: needs at least one layer")
    return layers


def reconstruction_layers(model: Autoencoder | StackedAutoencoder) -> list[Layer]:
    """The encoder and then the decoder; the last activation gives the reconstruction."""
    return encoder_layers(model) + [_decoder_layer(layer) for layer in reversed(autoencoders(model))]


def _decoder_layer(model: Autoencoder) -> Layer:
    activation = model.options.reconstruction_activation
    return _read(
        model.decoder,
        lambda code: get_activation(activation).function(model.decoder_product(code)),
        lambda: (model.decoder_weight, model.decoder.bias, activation),
    )


@torch.no_grad()
def _read(module: nn.Module, call: Callable[[Tensor], Tensor], layer: Callable[[], Layer]) -> Layer:
    """The layer that ``module`` computes by ``call``, after the hooks that may compute its weight.

    Raises:
        ValueError: hooks or a forward of its own compute something else than the layer's parameters.
    """
    if not runs_code(module):
        return layer()
    weight = layer()[0]
    probe = torch.linspace(-1.0, 1.0, 2 * weight.shape[1], device=weight.device).to(weight.dtype).view(2, -1)
    training, module.training = module.training, False
    try:
        found = call(probe)
    finally:
        module.training = training
    if not torch.allclose(found, apply_layers([layer()], probe), 1e-2, 1e-2, equal_nan=True):
        raise ValueError(
            f"model: its {type(module).__name__} computes something else than its parameters tell, by hooks "
            "or a forward of its own, and cannot be measured"
        )
    return layer()


def widened(layers: Sequence[Layer], x: Tensor, *, rows: int = 0) -> list[Layer]:
    """Check the layers against ``x`` and convert them to the dtype of the measurement.

    Raises:
        ValueError: a shape, dtype, device or name that does not fit, or fewer than ``rows`` rows, named.
    """
    below, name = x, "x"
    for weight, bias, activation in layers:
        check_linear(name, below, weight, bias)
        get_activation(activation)
        below, name = below.new_empty(0, weight.shape[0]), "code"
    check_rows("x", x, rows)
    dtype = sum_dtype(x.dtype)
    return [(weight.to(dtype), None if bias is None else bias.to(dtype), f) for weight, bias, f in layers]


def check_rows(name: str, x: Tensor, rows: int = 1) -> None:
    """Raise ``ValueError`` unless ``x`` is a floating-point tensor [*, D] with at least ``rows`` rows."""
    check_floating(name, x)
    if x.dim() < 1:
        raise ValueError(f"{name}: expected at least one dimension [*, D], got a scalar")
    if math.prod(x.shape[:-1]) < rows:
        raise ValueError(f"{name}: needs at least {rows} row{'s' * (rows > 1)}, got shape {list(x.shape)}")


def check_finite(name: str, x: Tensor) -> None:
    """Raise ``ValueError`` unless all of ``x`` is finite: a decomposition's own error names no argument."""
    wrong = sum(int((~rows.isfinite()).sum()) for _, rows in chunks(x, x.shape[-1]))
    if wrong:
        raise ValueError(f"{name}: {wrong} entries are NaN or infinite")


def chunks(x: Tensor, entries: int) -> Iterator[tuple[slice, Tensor]]:
    """Yield the rows of x [*, D] in chunks, each with its slice, for ``entries`` of workspace per row."""
    rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    size = room(entries)
    for low in range(0, len(rows), size):
        place = slice(low, min(low + size, len(rows)))
        yield place, rows[place].to(sum_dtype(x.dtype))


def room(entries: int) -> int:
    """Number of times that ``entries`` fit into the workspace, at least 1."""
    return max(1, WORKSPACE // max(1, entries))


def widest(layers: Sequence[Layer]) -> int:
    """Largest number of entries per row in any layer."""
    return max(max(weight.shape) for weight, _, _ in layers)


def apply_layers(layers: Sequence[Layer], x: Tensor) -> Tensor:
    """The last layer's output [B, H] for x [B, D]."""
    for weight, bias, activation in layers:
        x = get_activation(activation).function(F.linear(x, weight, bias))
    return x


def slopes_of(layers: Sequence[Layer], x: Tensor) -> list[Tensor]:
    """s_l = f'(z_l) [B, H_l] of every layer: dh/dx = diag(s_L) W_L ... diag(s_1) W_1."""
    slopes = []
    for weight, bias, activation in layers:
        x, slope = code_and_slope(x, (weight, bias, activation))
        slopes.append(slope)
    return slopes


def code_and_slope(x: Tensor, layer: Layer) -> tuple[Tensor, Tensor]:
    """h = f(z) and s = f'(z), [B, H] each, of one layer on x [B, D]."""
    weight, bias, activation = layer
    f = get_activation(activation)
    z = F.linear(x, weight, bias)
    code = f.function(z)
    return code, f.derivative(code, z)
