"""What a trained stack is worth on given rows, as numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from ..diagnostics import Diagnosis
from ..nn import StackedAutoencoder
from .data import Rows
from .sources import require

_CHUNK = 1024


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
        JSON-able values: those of :func:`fastae.diagnostics.diagnose`; ``probe_error`` and
        ``classifier_error``: shares of rows.
    """
    stack.eval()
    parameter = next(stack.parameters())
    diagnosis = Diagnosis(stack)
    wrong = 0.0
    for place, values in rows.chunks(_CHUNK):
        x = torch.from_numpy(values).to(parameter)
        diagnosis.add(x)
        if classifier is not None and rows.labels is not None:
            labels = torch.from_numpy(rows.labels[place]).to(parameter.device)
            wrong += float((classifier(x).argmax(1) != labels).sum())
    result = diagnosis.result()
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
