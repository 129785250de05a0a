"""What a trained stack is worth on given rows, as numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from ..diagnostics import Diagnosis
from ..losses import Loss, get_loss
from ..nn import StackedAutoencoder
from ..optional import require
from .data import Rows

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
        stack: the model; evaluated clean, without noise, and left in the mode it is in.
        rows: what to evaluate on.
        classifier: logits of x, for ``classifier_error``; as the stack, without its dropout.
        probe_rows: labelled rows to fit the linear probe on (logistic regression on the standardised codes
            of the last layer), of more than one class.
        probe_limit: of the rows that are drawn from them, always the same ones.

    Returns:
        JSON-able values: those of :func:`fastae.diagnostics.diagnose`; ``probe_error`` and
        ``classifier_error``: shares of rows. Where ``rows`` have values that the loss is not defined for (as
        cross-entropy outside [0, 1]), ``loss`` is mse and ``reconstruction`` the squared error.

    Raises:
        ValueError: no rows, or no ``probe_rows``.
    """
    for name, given in (("rows", rows), ("probe_rows", probe_rows)):
        if given is not None and not len(given):
            raise ValueError(f"{name}: needs at least one row")
    with _without_noise(stack, classifier):
        return _evaluate(stack, rows, classifier, probe_rows, probe_limit)


def _evaluate(
    stack: StackedAutoencoder,
    rows: Rows,
    classifier: nn.Module | None,
    probe_rows: Rows | None,
    probe_limit: int,
) -> dict[str, Any]:
    parameter = next(stack.parameters())
    first = stack.autoencoders[0]
    is_defined = _takes(get_loss(first.options.loss), rows)
    diagnosis = Diagnosis(stack)
    wrong = squared = 0.0
    for place, values in rows.chunks(_CHUNK):
        x = torch.from_numpy(values).to(parameter)
        diagnosis.add(x)
        if not is_defined:
            squared += float((first.reconstruct(x) - x).square().sum(dtype=torch.float64))
        if classifier is not None and rows.targets is not None:
            labels = torch.from_numpy(rows.targets[place]).to(parameter.device)
            wrong += float((classifier(x).argmax(1) != labels).sum())
    result = diagnosis.result()
    if not is_defined:
        result.update(loss="mse", reconstruction=rows.width * result["mse"])
        result["layers"][0].update(loss="mse", reconstruction=squared / len(rows))
    if probe_rows is not None and len(probe_rows) > probe_limit:
        # not the first ones, which may be of one class
        drawn = np.random.default_rng(0).permutation(len(probe_rows))[:probe_limit]
        probe_rows = probe_rows.subset(np.sort(drawn))
    if rows.targets is not None:
        if probe_rows is not None and probe_rows.targets is not None and np.ptp(probe_rows.targets):
            result["probe_error"] = _probe_error(stack, probe_rows, rows)
        if classifier is not None:
            result["classifier_error"] = wrong / len(rows)
    return result


def _takes(loss: Loss, rows: Rows) -> bool:
    """Whether a loss is defined for all rows."""
    if loss.bounds == (-math.inf, math.inf):
        return True
    return all(loss.takes(float(x.min()), float(x.max())) for _, x in rows.chunks(_CHUNK))


@torch.no_grad()
def encode_rows(stack: StackedAutoencoder, rows: Rows, depth: int | None = None) -> np.ndarray:
    """The codes of all rows, float32 [N, H]."""
    parameter = next(stack.parameters())
    with _without_noise(stack):
        codes = [stack.encode(parameter.new_empty(0, rows.width), depth).float().cpu()]  # of no rows, too
        for _, values in rows.chunks(_CHUNK):
            codes.append(stack.encode(torch.from_numpy(values).to(parameter), depth).float().cpu())
    return torch.cat(codes).numpy()


@contextmanager
def _without_noise(*models: nn.Module | None) -> Iterator[None]:
    """Evaluation mode; then each module is in its own again."""
    modules = [module for model in models if model is not None for module in model.modules()]
    modes = [module.training for module in modules]
    for module in modules:
        module.training = False
    try:
        yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode


def _probe_error(stack: StackedAutoencoder, train: Rows, test: Rows) -> float:
    linear_model = require("sklearn.linear_model", "the linear probe")
    preprocessing = require("sklearn.preprocessing", "the linear probe")
    assert train.targets is not None and test.targets is not None
    scaler = preprocessing.StandardScaler()
    codes = scaler.fit_transform(encode_rows(stack, train))
    probe = linear_model.LogisticRegression(C=0.1, max_iter=300).fit(codes, train.targets)
    return float(np.mean(probe.predict(scaler.transform(encode_rows(stack, test))) != test.targets))
