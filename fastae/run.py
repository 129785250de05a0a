"""A trained run, for use: raw rows in, results in the data's own units out."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .diagnostics import reconstruction_errors
from .train.checkpoint import Checkpoint, load_checkpoint
from .train.data import Dataset, Rows
from .train.data.parts import as_array, check_finite, is_sparse, select_columns
from .train.evaluation import evaluate

_CHUNK = 4096


class Run:
    """A trained stack with the scaling of its training data.

    Rows are given as they are in the data: arrays or tensors of any real dtype, SciPy matrices, [N, D], one
    row [D], or in the shape of the training data, such as [N, 28, 28]. The columns of a data frame are taken
    by name, where the run knows their names. Results are NumPy arrays.

    Attributes:
        checkpoint: the stack, the classifier if there is one, the scaling and the configuration.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self._stack = checkpoint.stack.eval()

    def encode(self, rows: Any, depth: int | None = None) -> np.ndarray:
        """Codes of rows after ``depth`` layers (default: all), float32 [N, H]."""
        return self._apply(rows, lambda x: self._stack.encode(x, depth))

    def reconstruct(self, rows: Any) -> np.ndarray:
        """Reconstructions in the units and shape of ``rows``, float64."""
        given = self._given(rows)
        scaled = self._apply(given, self._stack.reconstruct)
        return self.checkpoint.scaling.inverse(scaled).reshape(given.shape)

    def score(self, rows: Any) -> np.ndarray:
        """Anomaly scores per row, [N]: the reconstruction error above the least there is.

        The error is the loss of the first layer, summed over features; see
        :func:`fastae.diagnostics.reconstruction_errors`.
        """
        return self._apply(rows, self._score)

    def score_rows(self, rows: Rows) -> np.ndarray:
        """:meth:`score` of the rows of a data set that :meth:`load_data` gave."""
        return self._apply_to(rows, self._score)

    def reconstruct_rows(self, rows: Rows) -> np.ndarray:
        """:meth:`reconstruct` of the rows of a data set that :meth:`load_data` gave, [N, D]."""
        return self.checkpoint.scaling.inverse(self._apply_to(rows, self._stack.reconstruct))

    def predict(self, rows: Any) -> np.ndarray:
        """Labels of rows, [N], by the run's classifier."""
        classifier, classes = self.checkpoint.classifier, self.checkpoint.classes
        if classifier is None or classes is None:
            raise ValueError(f"run: {self.checkpoint.path} has no classifier")
        classifier.eval()
        return classes[self._apply(rows, lambda x: classifier(x).argmax(1))]

    def sample(self, rows: Any, steps: int = 1, *, std: float | None = None) -> np.ndarray:
        """The state of the denoising chain after ``steps`` steps from ``rows``, in their units and shape.

        See :meth:`fastae.nn.Autoencoder.sample`.
        """
        given = self._given(rows)
        scaled = self._apply(given, lambda x: self._stack.sample(x, steps, std=std))
        return self.checkpoint.scaling.inverse(scaled).reshape(given.shape)

    def evaluate(self, data: str | Dataset | None = None) -> dict[str, Any]:
        """The figures of ``fastae evaluate``: of a data set, its name or path, or the run's own rows."""
        dataset = data if isinstance(data, Dataset) else self.load_data(data)
        rows, _, training = self.checkpoint.parts(dataset, own=data is None)
        return evaluate(
            self._stack,
            rows,
            classifier=self.checkpoint.classifier,
            probe_rows=training,
            training=training,
        )

    def load_data(self, data: str | None = None) -> Dataset:
        """Data with the columns and scaling of the training data: ``data``, or what the run was trained on.

        Raises:
            DataError: for data that cannot be found or used.
            ValueError: for rows of another width.
        """
        dataset, width = self.checkpoint.load_data(data), self._stack.sizes[0]
        if dataset.width != width:
            raise ValueError(f"data: {dataset.name} has rows of {dataset.width}, the run takes {width}")
        return dataset

    def _given(self, rows: Any) -> np.ndarray:
        rows = select_columns("rows", rows, self.checkpoint.feature_names)
        return _array(rows, self._stack.input_options.missing)

    def _score(self, x: Tensor) -> Tensor:
        return reconstruction_errors(self._stack, x, excess=True)[0] if len(x) else x.new_empty(0)

    def _apply(self, rows: Any, function: Callable[[Tensor], Tensor]) -> np.ndarray:
        flat, scaling = _flat(self._given(rows), self._stack.sizes[0]), self.checkpoint.scaling
        starts = range(0, max(len(flat), 1), _CHUNK)  # one chunk of no rows for no rows
        return self._concatenated((scaling.apply(flat[i : i + _CHUNK]) for i in starts), function)

    def _apply_to(self, rows: Rows, function: Callable[[Tensor], Tensor]) -> np.ndarray:
        return self._concatenated((x for _, x in rows.chunks(_CHUNK)), function)

    def _concatenated(self, chunks: Iterable[np.ndarray], function: Callable[[Tensor], Tensor]) -> np.ndarray:
        parameter = next(self._stack.parameters())
        with torch.no_grad():
            parts = [function(torch.from_numpy(chunk).to(parameter)).cpu().numpy() for chunk in chunks]
        return np.concatenate(parts)


def load(run: str | PathLike[str]) -> Run:
    """Load a trained run: its folder, or that of one checkpoint.

    Raises:
        CheckpointError: for a folder without a checkpoint, or one that cannot be used.
    """
    return Run(load_checkpoint(Path(run)))


def _array(rows: Any, missing: bool) -> np.ndarray:
    array = as_array("rows", rows)
    array = array.toarray() if is_sparse(array) else array
    if array.dtype.kind not in "buif":
        raise ValueError(f"rows: expected numbers, got {array.dtype}")
    if array.ndim and array.size:
        check_finite("rows", array.reshape(len(array) if array.ndim > 1 else 1, -1), missing)
    return array


def _flat(array: np.ndarray, width: int) -> np.ndarray:
    """[N, width] from one row [width] or from rows of any shape."""
    if array.ndim == 0 or (array.ndim == 1 and array.shape != (width,)):
        raise ValueError(f"rows: expected shape [N, {width}], got {list(array.shape)}")
    flat = array[None] if array.ndim == 1 else array.reshape(len(array), int(np.prod(array.shape[1:])))
    if flat.shape[1] != width:
        raise ValueError(f"rows: expected shape [N, {width}], got {list(array.shape)}")
    return flat
