"""Figures of a trained stack on given rows."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import nn

from ..diagnostics import Diagnosis
from ..losses import get_loss
from ..nn import StackedAutoencoder
from ..optional import require
from .data import Dataset, Rows, split
from .yardstick import pca_errors

_CHUNK = 1024


PartName = Literal["train", "validation", "test"]


class Parts(NamedTuple):
    """The rows to evaluate a run on.

    Attributes:
        rows: rows that the run was not trained on, where there are any.
        name: their name in titles.
        training: the rows that it was trained on, where they are known.
    """

    rows: Rows
    name: str
    training: Rows | None


def evaluation_parts(
    dataset: Dataset, validation: float = 0.0, seed: int = 0, part: PartName | None = None
) -> Parts:
    """The rows of a part of a data set.

    Args:
        dataset: the data.
        validation: share of the training part that the run held out.
        seed: seed of the run.
        part: "test", "validation" or "train", which has the validation rows among it. By default the test
            part, else the validation rows, else all rows.

    Raises:
        ValueError: there is no such part.
    """
    if part == "test" and dataset.test is None:
        raise ValueError(f"part: {dataset.name} has no test part")
    if part == "validation" and not validation:
        raise ValueError(f"part: no rows of {dataset.name} were held out for validation")
    if dataset.test is not None and part in (None, "test"):
        return Parts(dataset.test, "test part", dataset.train)
    if validation and part != "train":
        training, held_out = split(dataset.train, validation, seed)
        why = ", as there is no test part" if part is None else ""
        return Parts(held_out, f"validation rows{why}", training)
    if part is None:
        return Parts(dataset.train, "all rows, none of them held out", None)
    return Parts(dataset.train, "all rows" if dataset.test is None else "training part", dataset.train)


@torch.no_grad()
def evaluate(
    stack: StackedAutoencoder,
    rows: Rows,
    *,
    classifier: nn.Module | None = None,
    probe_rows: Rows | None = None,
    probe_limit: int = 10_000,
    training: Rows | None = None,
) -> dict[str, Any]:
    """Evaluate reconstruction, penalty, units and, with labels, classification on ``rows``.

    Args:
        stack: the model; evaluated clean, without noise, and left in the mode it is in.
        rows: what to evaluate on.
        classifier: logits of x, for ``classifier_error``; as the stack, without its dropout.
        probe_rows: labelled rows to fit the linear probe on (logistic regression on the standardised codes
            of the last layer), of more than one class.
        probe_limit: of the rows that are drawn from them, always the same ones.
        training: rows to fit PCA on, the yardstick of the reconstruction; not with missing values.

    Returns:
        JSON-able values: those of :func:`fastae.diagnostics.diagnose`; ``r2``, the share of the rows'
        variance that is reconstructed (negative: worse than their mean); ``probe_error`` and
        ``classifier_error``: shares of rows. With ``training`` (and at most 2048 columns) ``pca_mse``, the
        mse of PCA with as many components as the code has units, and ``pca_components``, the number that PCA
        needs for an mse as small as the model's. Where ``rows`` have values that the loss is not defined for
        (as cross-entropy outside [0, 1]), ``loss`` is mse and ``reconstruction`` the squared error. With
        cosine, which leaves the length of reconstructions free, there is neither ``r2`` nor PCA.

    Raises:
        ValueError: no rows, or no ``probe_rows``.
    """
    for name, given in (("rows", rows), ("probe_rows", probe_rows), ("training", training)):
        if given is not None and not len(given):
            raise ValueError(f"{name}: needs at least one row")
    with _without_noise(stack, classifier):
        result = _evaluate(stack, rows, classifier, probe_rows, probe_limit)
    errors = None
    has_length = not get_loss(stack.input_options.loss).of_rows
    if training is not None and has_length and not stack.input_options.missing:
        errors = pca_errors(training, rows)
    if errors is not None:
        result["pca_mse"] = float(errors[min(stack.sizes[-1], rows.width)])
        enough = errors <= result["mse"]
        result["pca_components"] = int(enough.argmax()) if enough.any() else rows.width
    return result


def _evaluate(
    stack: StackedAutoencoder,
    rows: Rows,
    classifier: nn.Module | None,
    probe_rows: Rows | None,
    probe_limit: int,
) -> dict[str, Any]:
    parameter = next(stack.parameters())
    first = stack.autoencoders[0]
    loss, is_defined = get_loss(first.options.loss), True
    diagnosis = Diagnosis(stack)
    wrong = squared = 0.0
    sums = np.zeros((3, rows.width))
    for place, values in rows.chunks(_CHUNK):
        x = torch.from_numpy(values).to(parameter)
        diagnosis.add(x)
        known, wide = ~np.isnan(values), values.astype(np.float64)
        sums += known.sum(0), wide.sum(0, where=known), np.square(wide).sum(0, where=known)
        if loss.is_bounded:
            low, high = np.fmin.reduce(values, axis=None), np.fmax.reduce(values, axis=None)
            is_defined &= not low <= high or loss.takes(float(low), float(high))
            squared += float((first.reconstruct(x) - x).square().nansum(dtype=torch.float64))
        if classifier is not None and rows.targets is not None:
            labels = torch.from_numpy(rows.targets[place]).to(parameter.device)
            wrong += float((classifier(x).argmax(1) != labels).sum())
    result = diagnosis.result()
    count, (mean, mean_square) = sums[0], sums[1:] / np.maximum(sums[0], 1.0)
    variance = float((np.maximum(mean_square - mean**2, 0.0) * count).sum() / max(count.sum(), 1.0))
    if not loss.of_rows:
        result["r2"] = 1.0 - result["mse"] / variance if variance else math.nan
    if not is_defined:
        measured = {"loss": "mse", "least_reconstruction": 0.0}
        result.update(measured, reconstruction=rows.width * result["mse"])
        result["layers"][0].update(measured, reconstruction=squared / len(rows))
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
