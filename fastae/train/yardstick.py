"""PCA as the yardstick of a reconstruction: the best that any linear code of a width can do."""

from __future__ import annotations

import numpy as np

from .data import Rows

_CHUNK = 4096
_WIDEST = 2048  # columns up to which the eigenvectors take seconds at most
_FITTED = 20_000  # rows


def pca_errors(training: Rows, rows: Rows) -> np.ndarray | None:
    """Squared error per feature, mean over ``rows``, of PCA with 0, 1, ..., D components: float64 [D + 1].

    Mean and components are those of ``training``, or of 20,000 rows that are drawn from it, always the same.
    ``None`` for rows of more than 2048 columns.
    """
    if rows.width > _WIDEST:
        return None
    if len(training) > _FITTED:
        training = training.subset(np.sort(np.random.default_rng(0).permutation(len(training))[:_FITTED]))
    mean = _moment(training, 1)
    variances, components = np.linalg.eigh(_moment(training, 2, mean))
    order = np.argsort(variances)[::-1]
    energies = np.einsum("dk,de,ek->k", components, _moment(rows, 2, mean), components, optimize=True)[order]
    return np.append(np.cumsum(np.maximum(energies, 0.0)[::-1])[::-1], 0.0) / rows.width


def _moment(rows: Rows, order: int, mean: np.ndarray | None = None) -> np.ndarray:
    """The mean [D] of rows, or of their outer products about ``mean``, [D, D]."""
    total = np.zeros((rows.width,) * order)
    for _, chunk in rows.chunks(_CHUNK):
        x = chunk.astype(np.float64)
        total += x.sum(0) if mean is None else (x - mean).T @ (x - mean)
    return total / len(rows)
