"""Measures of a reconstruction r(x): its displacement r(x) - x and its error."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor

from .. import reference
from ..losses import get_loss
from ..nn import Autoencoder, StackedAutoencoder
from ..tensors import fill_missing
from .networks import (
    apply_layers,
    autoencoders,
    chunks,
    measurement,
    reconstruction_layers,
    widened,
    widest,
)


@measurement
def vector_field(model: Autoencoder | StackedAutoencoder, x: Tensor) -> Tensor:
    """r(x) - x, like x [*, D]: after denoising or contractive training it points towards dense data.

    Raises:
        ValueError: x does not fit the model.
    """
    layers = widened(reconstruction_layers(model), x)
    field = x.new_empty(math.prod(x.shape[:-1]), x.shape[-1], dtype=layers[0][0].dtype)
    for place, rows in chunks(x, widest(layers)):
        field[place] = apply_layers(layers, rows) - rows
    return field.view(x.shape)


def score(model: Autoencoder | StackedAutoencoder, x: Tensor, std: float) -> Tensor:
    """(r(x) - x) / std^2, like x [*, D]: an estimate of d log p(x) / dx (Alain and Bengio 2014, th. 1).

    Valid for a model trained on the squared error to remove Gaussian noise of a small ``std``.

    Raises:
        ValueError: x does not fit the model, or ``std`` is not a finite number > 0.
    """
    if not (isinstance(std, int | float) and std > 0.0 and math.isfinite(std)):
        raise ValueError(f"std: must be a finite number > 0, got {std!r}")
    return vector_field(model, x).div_(std**2)


@measurement
def reconstruction_errors(
    model: Autoencoder | StackedAutoencoder, x: Tensor, *, excess: bool = False
) -> tuple[Tensor, Tensor]:
    """The model's loss on clean x [*, D], per row (an anomaly score) and per feature.

    Args:
        model: an autoencoder or a stack.
        x: [*, D], with rows.
        excess: subtract the least possible value, which for bce is the entropy of x's entries. The rest is
            the divergence of r(x) from x, which is 0 where they are equal. Without this, rows with values
            between 0 and 1 look anomalous however well they are reconstructed.

    Returns:
        Sums over features, [*], and means over rows, [D]. Values that the loss is not defined for, such as
        those outside of [0, 1] for bce, count as the nearest ones that it is, plus the square of their
        distance to them. Those of cosine are halved squared errors of rows scaled to length 1.

    Raises:
        ValueError: x does not fit the model, or has no rows.
    """
    layers = widened(reconstruction_layers(model), x, rows=1)
    options = autoencoders(model)[0].options
    least = get_loss(options.loss).least
    count = math.prod(x.shape[:-1])
    row_errors = x.new_empty(count, dtype=layers[0][0].dtype)
    features = row_errors.new_zeros(x.shape[-1])
    for place, rows in chunks(x, widest(layers)):
        code = apply_layers(layers[:-1], fill_missing(rows, options.missing))
        a = F.linear(code, *layers[-1][:2])
        entries = reference.errors_of_any(a, rows, options.loss, options.output_activation, options.missing)
        if excess and least is not None:
            entries -= least(rows).nan_to_num(0.0) if options.missing else least(rows)
        row_errors[place] = entries.sum(1)
        features += entries.sum(0) / count
    return row_errors.view(x.shape[:-1]), features
