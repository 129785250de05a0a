"""What a trained stack is worth on given rows, as numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .. import functional, reference
from ..activations import ACTIVATIONS
from ..nn import Autoencoder, StackedAutoencoder
from .data import Rows
from .sources import require

_CHUNK = 1024
SATURATED_SLOPE = 0.19  # of the slope at 0: h < .05 or h > .95 for sigmoid, |h| > .9 for tanh
_DEAD_RANGE = 1e-3


@dataclass
class _UnitStatistics:
    """Running statistics of one layer over chunks of rows."""

    layer: Autoencoder
    rows: int = 0
    loss: float = 0.0
    penalty: float = 0.0
    squared_slope: float = 0.0
    saturated: float = 0.0
    activation: float = 0.0
    low: Tensor | None = None
    high: Tensor | None = None

    def add(self, x: Tensor) -> Tensor:
        """Takes x [B, D] in and returns its code [B, H]."""
        layer, options = self.layer, self.layer.options
        f = ACTIVATIONS[options.activation]
        z = nn.functional.linear(x, layer.encoder.weight, layer.encoder.bias)
        code = f.function(z)
        slope = f.derivative(code, z)
        squared = slope.square()
        loss = functional.reconstruction_loss(
            code,
            layer.decoder_weight,
            layer.decoder.bias,
            x,
            options.loss,
            output_activation=options.output_activation,
            reduction="sum",
        )
        self.rows += len(x)
        self.loss += float(loss)
        penalty = squared @ reference.squared_norms(layer.encoder.weight)
        self.penalty += float(penalty.sum(dtype=torch.float64))
        self.squared_slope += float(squared.sum(dtype=torch.float64))
        zero = x.new_zeros(1)
        slope_at_0 = float(f.derivative(f.function(zero), zero))  # 0 for relu: what is flat counts
        self.saturated += float((slope.abs() <= SATURATED_SLOPE * slope_at_0).sum())
        self.activation += float(code.sum(dtype=torch.float64))
        low, high = code.amin(0), code.amax(0)
        self.low = low if self.low is None else torch.minimum(self.low, low)
        self.high = high if self.high is None else torch.maximum(self.high, high)
        return code

    def result(self) -> dict[str, Any]:
        units = self.layer.code_features
        entries = self.rows * units
        assert self.low is not None and self.high is not None
        return {
            "units": units,
            "loss": self.layer.options.loss,
            "reconstruction": self.loss / self.rows,
            "contractive_penalty": self.penalty / self.rows,
            "mean_squared_slope": self.squared_slope / entries,
            "mean_squared_norm": float(reference.squared_norms(self.layer.encoder.weight).mean()),
            "saturated_share": self.saturated / entries,
            "dead_units": int((self.high - self.low < _DEAD_RANGE).sum()),
            "mean_activation": self.activation / entries,
        }


@torch.no_grad()
def evaluate(
    stack: StackedAutoencoder,
    rows: Rows,
    *,
    classifier: nn.Module | None = None,
    probe_rows: Rows | None = None,
    probe_limit: int = 10_000,
) -> dict[str, Any]:
    """Reconstruction, penalty, units and, with labels, classification on ``rows``.

    Args:
        stack: the model; evaluated clean, without noise.
        rows: what to evaluate on.
        classifier: logits of x, for ``classifier_error``.
        probe_rows: labelled rows to fit the linear probe on (logistic regression on the standardised codes
            of the last layer); the first ``probe_limit`` of them.

    Returns:
        JSON-able values: ``reconstruction`` (the loss, summed over features, mean over rows) and ``mse``
        (mean over features, too) of the whole stack; ``contractive_penalty`` ||dcode/dx||_F^2 of the whole
        encoder (estimated with 4 probes a row for two layers and more); for each of ``layers`` the same of
        that layer on its own input, with the penalty's parts: ``mean_squared_slope`` and
        ``mean_squared_norm``, whose product over units is the penalty; ``saturated_share``: codes whose slope
        is at most 0.19 of that at 0 (h < .05 or h > .95 for the sigmoid); ``dead_units``: those that move by
        less than 0.001 over all rows; ``probe_error`` and ``classifier_error``: shares of rows.
    """
    stack.eval()
    parameter = next(stack.parameters())
    layers = [_UnitStatistics(layer) for layer in stack.autoencoders]
    first = stack.autoencoders[0].options
    encoder = [(a.encoder.weight, a.encoder.bias, a.options.activation) for a in stack.autoencoders]
    total = squared = penalty = wrong = 0.0
    generator = torch.Generator(parameter.device).manual_seed(0)
    for place, values in rows.chunks(_CHUNK):
        x = torch.from_numpy(values).to(parameter)
        code = x
        for layer in layers:
            code = layer.add(code)
        for layer in stack.autoencoders[:0:-1]:
            code = layer.decode(code)
        bottom = stack.autoencoders[0]
        loss = functional.reconstruction_loss(
            code, bottom.decoder_weight, bottom.decoder.bias, x, first.loss,
            output_activation=first.output_activation, reduction="sum",
        )  # fmt: skip
        total += float(loss)
        reconstruction = bottom.decode(code)
        squared += float((reconstruction - x).square().mean(1).sum(dtype=torch.float64))
        if len(layers) == 1:
            penalty = layers[0].penalty
        else:
            _, estimate = functional.deep_contractive_encode(
                x, encoder, probes=4, reduction="sum", generator=generator
            )
            penalty += float(estimate)
        if classifier is not None and rows.labels is not None:
            labels = torch.from_numpy(rows.labels[place]).to(parameter.device)
            wrong += float((classifier(x).argmax(1) != labels).sum())
    result: dict[str, Any] = {
        "rows": len(rows),
        "loss": first.loss,
        "reconstruction": total / len(rows),
        "mse": squared / len(rows),
        "contractive_penalty": penalty / len(rows),
        "layers": [layer.result() for layer in layers],
    }
    if probe_rows is not None and len(probe_rows) > probe_limit:
        probe_rows = probe_rows.subset(slice(0, probe_limit))
    if rows.labels is not None:
        if probe_rows is not None and probe_rows.labels is not None and np.ptp(probe_rows.labels):
            result["probe_error"] = _probe_error(stack, probe_rows, rows)
        if classifier is not None:
            result["classifier_error"] = wrong / len(rows)
    return result


@torch.no_grad()
def encode_rows(stack: StackedAutoencoder, rows: Rows, depth: int | None = None) -> np.ndarray:
    """The codes of all rows, float32 [N, H]."""
    stack.eval()
    parameter = next(stack.parameters())
    codes = [
        stack.encode(torch.from_numpy(values).to(parameter), depth).float().cpu()
        for _, values in rows.chunks(_CHUNK)
    ]
    return torch.cat(codes).numpy()


def _probe_error(stack: StackedAutoencoder, train: Rows, test: Rows) -> float:
    linear_model = require("sklearn.linear_model", "the linear probe")
    preprocessing = require("sklearn.preprocessing", "the linear probe")
    assert train.labels is not None and test.labels is not None
    scaler = preprocessing.StandardScaler()
    codes = scaler.fit_transform(encode_rows(stack, train))
    probe = linear_model.LogisticRegression(C=0.1, max_iter=300).fit(codes, train.labels)
    return float(np.mean(probe.predict(scaler.transform(encode_rows(stack, test))) != test.labels))
