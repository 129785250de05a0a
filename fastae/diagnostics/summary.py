"""All figures of a model at once, in one pass over the rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import reference
from ..activations import get_activation
from ..functional import Layer
from ..losses import get_loss
from ..nn import Autoencoder, StackedAutoencoder
from ..tensors import fill_missing
from .jacobian import squared_jacobian_norm
from .networks import (
    apply_layers,
    autoencoders,
    chunks,
    code_and_slope,
    measurement,
    reconstruction_layers,
    widened,
    widest,
)
from .units import DEAD_RANGE, code_sparsity, is_flat

_PROBES = 4


def _total(values: Tensor) -> float:
    return float(values.sum(dtype=torch.float64))


@dataclass
class _LayerFigures:
    """Running sums over rows of one layer on its own input."""

    autoencoder: Autoencoder
    loss: float = 0.0
    least: float = 0.0
    penalty: float = 0.0
    squared_slope: float = 0.0
    saturated: float = 0.0
    sparsity: float = 0.0
    activation: float = 0.0
    squared_norm: float = 0.0
    low: Tensor | None = None
    high: Tensor | None = None

    def add(self, x: Tensor, encoder: Layer, decoder: Layer) -> Tensor:
        """Add the figures of x [B, D] and return its code [B, H]."""
        options = self.autoencoder.options
        target, x = x, fill_missing(x, options.missing)
        code, slope = code_and_slope(x, encoder)
        squared = slope.square()
        a = F.linear(code, *decoder[:2])
        self.loss += _total(
            reference.errors_of_any(a, target, options.loss, options.output_activation, options.missing)
        )
        least = get_loss(options.loss).least
        self.least += (
            0.0 if least is None else _total(least(target).nan_to_num(0.0) if options.missing else least(x))
        )
        norms = reference.squared_norms(encoder[0])
        self.squared_norm = float(norms.mean())
        self.penalty += _total(squared @ norms)
        self.squared_slope += _total(squared)
        # NaN is not flat, but no number either
        self.saturated += float(is_flat(slope, options.activation).sum() + 0.0 * slope.sum())
        self.sparsity += _total(code_sparsity(code))
        self.activation += _total(code)
        low, high = code.amin(0), code.amax(0)
        self.low = low if self.low is None else torch.minimum(self.low, low)
        self.high = high if self.high is None else torch.maximum(self.high, high)
        return code

    def result(self, rows: int) -> dict[str, Any]:
        units = self.autoencoder.code_features
        entries = rows * units
        assert self.low is not None and self.high is not None
        return {
            "units": units,
            "loss": self.autoencoder.options.loss,
            "reconstruction": self.loss / rows,
            "least_reconstruction": self.least / rows,
            "contractive_penalty": self.penalty / rows,
            "mean_squared_slope": self.squared_slope / entries,
            "mean_squared_norm": self.squared_norm,
            "saturated_share": self.saturated / entries,
            "dead_units": int((self.high - self.low < DEAD_RANGE).sum()),
            "mean_activation": self.activation / entries,
            "mean_sparsity": self.sparsity / rows,
        }


class Diagnosis:
    """The figures of :func:`diagnose` for rows that come in chunks: ``add`` each, then call ``result``."""

    def __init__(self, model: Autoencoder | StackedAutoencoder) -> None:
        self._model = model
        self._layers = [_LayerFigures(autoencoder) for autoencoder in autoencoders(model)]
        self._options = autoencoders(model)[0].options
        self._rows = self._missing = 0
        self._loss = self._squared = self._penalty = 0.0
        self._generator = torch.Generator(next(model.parameters()).device).manual_seed(0)

    @measurement
    def add(self, x: Tensor) -> None:
        """Add the rows of x [*, D]."""
        layers = widened(reconstruction_layers(self._model), x)
        for _, rows in chunks(x, widest(layers)):
            self._add(rows, layers[: len(self._layers)], layers[len(self._layers) :])

    def _add(self, x: Tensor, encoders: list[Layer], decoders: list[Layer]) -> None:
        code = x
        for figures, encoder, decoder in zip(self._layers, encoders, reversed(decoders), strict=True):
            code = figures.add(code, encoder, decoder)
        weight, bias, activation = decoders[-1]
        a = F.linear(apply_layers(decoders[:-1], code), weight, bias)
        o = self._options
        self._loss += _total(reference.errors_of_any(a, x, o.loss, o.output_activation, o.missing))
        errors = get_activation(activation).function(a) - x
        if o.missing:
            self._missing += int(x.isnan().sum())
        errors, x = fill_missing(errors, o.missing), fill_missing(x, o.missing)
        self._squared += _total(errors.square())
        if len(encoders) > 1:
            self._penalty += _total(squared_jacobian_norm(encoders, x, "estimate", _PROBES, self._generator))
        self._rows += len(x)

    def result(self) -> dict[str, Any]:
        """The figures of all rows so far; ``ValueError`` if there are none."""
        if not self._rows:
            raise ValueError("x: needs at least one row")
        layers = [figures.result(self._rows) for figures in self._layers]
        deep = len(layers) > 1
        return {
            "rows": self._rows,
            "loss": self._options.loss,
            "reconstruction": self._loss / self._rows,
            "least_reconstruction": layers[0]["least_reconstruction"],
            "mse": self._squared
            / max(self._rows * self._layers[0].autoencoder.in_features - self._missing, 1),
            "contractive_penalty": self._penalty / self._rows if deep else layers[0]["contractive_penalty"],
            "layers": layers,
        }


def diagnose(model: Autoencoder | StackedAutoencoder, x: Tensor) -> dict[str, Any]:
    """The figures of a model on x [*, D], JSON-able, in one pass and without noise.

    Returns:
        ``rows``; ``loss``, the name, and ``reconstruction``, its value (sum over features, mean over rows);
        ``least_reconstruction``, the least value it could take (0 for most losses, see
        :func:`reconstruction_errors`); ``mse`` (mean over the features and rows that are known) of the
        whole model;
        ``contractive_penalty`` ||dcode/dx||_F^2 of the whole encoder (estimated with 4 probes per row for two
        layers and more, from a fixed seed); for each of ``layers`` the same of that layer on its own input,
        with the penalty's parts: ``mean_squared_slope`` and ``mean_squared_norm``, whose product over units
        is the penalty; ``saturated_share``: of all codes, see :func:`fastae.diagnostics.saturated`;
        ``dead_units``: those that move by less than 0.001 over all rows; ``mean_activation``;
        ``mean_sparsity``: of each row's code, 0 to 1 (Hoyer 2004).

    Raises:
        ValueError: x does not fit the model, or has no rows.
    """
    diagnosis = Diagnosis(model)
    diagnosis.add(x)
    return diagnosis.result()
