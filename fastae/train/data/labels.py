"""Labels of any kind, and the classes 0..K-1 that a classifier is trained on."""

from __future__ import annotations

import numpy as np

from ...errors import DataError

_LEAST_ROWS_PER_CLASS = 3  # on average; below it labels are identifiers or a measured quantity


def check_labels(name: str, labels: np.ndarray, rows: int) -> np.ndarray:
    """Labels [rows] in their plain form.

    Args:
        name: begins the messages of errors.
        labels: text, booleans or numbers, [rows] or [rows, 1]; or one-hot rows [rows, K].
        rows: the number that there must be.

    Returns:
        Text, booleans, int64, or float64 where not all are whole numbers that int64 holds.

    Raises:
        DataError: for another shape or dtype, and for labels that are missing.
    """
    if labels.shape == (rows, 1):
        labels = labels[:, 0]
    elif labels.ndim == 2 and len(labels) == rows and labels.dtype.kind in "biuf" and _is_one_hot(labels):
        labels = labels.argmax(axis=1)
    if labels.shape != (rows,):
        raise DataError(
            f"{name}: {rows} rows need labels of shape ({rows},) or one-hot, not of shape {labels.shape}"
        )
    if labels.dtype.kind == "O":
        labels = _from_objects(name, labels)
    kind = labels.dtype.kind
    if kind == "S":
        labels, kind = np.char.decode(labels, "utf-8", "replace"), "U"
    if kind not in "buifUT":
        raise DataError(f"{name}: labels of dtype {labels.dtype} are neither numbers nor text")
    missing = ~np.isfinite(labels) if kind == "f" else labels == "" if kind in "UT" else np.zeros(0, bool)
    if missing.any():
        row = int(np.argmax(missing))
        raise DataError(f"{name}: label {str(labels[row]) or 'of no text'} of row {row} is missing")
    if kind in "bUT":
        return labels.astype(str) if kind != "b" else labels
    if kind == "f" and is_continuous(labels):
        return labels.astype(np.float64)
    held = float(labels.min()) >= -(2.0**63) and float(labels.max()) < 2.0**63 if labels.size else True
    return labels.astype(np.int64) if held else labels


def is_continuous(labels: np.ndarray) -> bool:
    """True if not all labels are text, booleans or whole numbers."""
    return labels.dtype.kind == "f" and bool((labels != np.floor(labels)).any())


def find_classes(
    name: str, train: np.ndarray | None, test: np.ndarray | None, known: np.ndarray | None = None
) -> np.ndarray | None:
    """The different labels of both parts, sorted: the classes 0..K-1.

    Args:
        name: begins the messages of errors.
        train, test: as :func:`check_labels` returns them.
        known: classes that were found before; they come first, and what else there is after them.

    Returns:
        Classes [K], or None without labels and where they are continuous.

    Raises:
        DataError: numbers in one part, and text in another.
    """
    parts = [labels for labels in (train, test) if labels is not None]
    if not parts or any(map(is_continuous, parts)):
        return None
    if known is not None:
        parts.insert(0, known)
    if len({labels.dtype.kind in "UT" for labels in parts}) > 1:
        raise DataError(f"{name}: labels are text in one part and numbers in another")
    found = np.unique(np.concatenate(parts))
    if known is None:
        return found
    return np.concatenate([known, found[~np.isin(found, known)]])


def encode_labels(labels: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """The place of each label among the classes, int64 [N]."""
    order = np.argsort(classes, kind="stable")
    return order[np.searchsorted(classes, labels, sorter=order)].astype(np.int64)


def check_classes(name: str, labels: np.ndarray | None, classes: np.ndarray | None) -> int:
    """The number of classes that a classifier is trained on.

    Raises:
        ValueError: for labels that a classifier cannot be trained on.
    """
    if labels is None or (classes is not None and len(classes) < 2):
        kind = "none" if labels is None else "one class only"
        raise ValueError(f"classifier: needs labels of two classes or more, and {name} has {kind}")
    if classes is None or is_continuous(labels):
        row = int(np.argmax(labels != np.floor(labels)))
        raise ValueError(
            f"classifier: needs classes, and the labels of {name} are continuous"
            f" ({labels[row]:g} in row {row})"
        )
    if len(labels) < _LEAST_ROWS_PER_CLASS * len(classes) and len(classes) > 2:
        raise ValueError(
            f"classifier: needs classes, and {name} has {len(classes)} labels in {len(labels)} rows,"
            f" fewer than {_LEAST_ROWS_PER_CLASS} rows each: identifiers or a measured quantity"
        )
    return len(classes)


def classes_from_json(values: object, number: int) -> np.ndarray:
    """Classes [K] from what JSON holds of ``classes.tolist()``.

    Raises:
        ValueError: not ``number`` different values, all text, all numbers or all booleans.
    """
    if not isinstance(values, list) or len(values) != number:
        raise ValueError(f"expected a list of {number} classes")
    if not any(all(isinstance(v, kind) for v in values) for kind in (str, bool, int | float)):
        raise ValueError("classes are neither all text nor all numbers")
    classes = np.array(values)
    if classes.dtype.kind not in "biufU" or len(np.unique(classes)) != number:
        raise ValueError(f"expected {number} different classes")
    return classes


def _is_one_hot(labels: np.ndarray) -> bool:
    ones = labels == 1
    return labels.shape[1] > 1 and bool((ones | (labels == 0)).all() and (ones.sum(axis=1) == 1).all())


def _from_objects(name: str, labels: np.ndarray) -> np.ndarray:
    for row, label in enumerate(labels):
        if label is None or (isinstance(label, float) and label != label):
            raise DataError(f"{name}: label {label} of row {row} is missing")
        if not isinstance(label, str | bool | np.bool_ | int | float | np.number):
            raise DataError(
                f"{name}: label of row {row} is neither a number nor text, but {type(label).__name__}"
            )
    if len({isinstance(label, str) for label in labels}) > 1:
        raise DataError(f"{name}: labels are partly text and partly numbers")
    return np.array(labels.tolist())
