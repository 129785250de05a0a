"""Tables: which columns are features, and which hold the labels."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ...errors import DataError
from .parts import RawPart, check_part

LABEL_NAMES = frozenset({"label", "labels", "target", "targets", "class", "y"})
_ONE_HOT_NAME = re.compile(r"(label|target|class)[ _.:=-](.+)", re.IGNORECASE)
_INDEX_NAMES = frozenset({"", "unnamed: 0", "__index_level_0__"})  # as pandas writes them


@dataclass(frozen=True)
class Columns:
    """Selection of columns of a table.

    Attributes:
        label: the column (or the key of an array) with the labels, or several one-hot columns; () takes one
            named label, target, class or y; ("none",) takes none. Columns without names are counted from 0.
        drop: columns to leave out.
        features: the features by name, in this order; None for all other columns.
        missing: whether empty cells of features are NaN.
    """

    label: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    features: tuple[str, ...] | None = None
    missing: bool = False

    @property
    def wants_labels(self) -> bool:
        """True if labels are to be taken at all."""
        return self.label != ("none",)

    def names(self) -> set[str]:
        """Every name that is given or looked for, in small letters."""
        given = {*self.label, *self.drop, *(self.features or ())}
        return {name.strip().lower() for name in given} | LABEL_NAMES


@dataclass(frozen=True)
class Choice:
    """The chosen columns of a table.

    Attributes:
        features, labels: their numbers; several labels are one-hot.
        names: of all columns, where there are any.
        by_name: whether the features were asked for by name, so that nothing is to be found out.
    """

    features: list[int]
    labels: list[int]
    names: list[str] | None
    by_name: bool


def choose(name: str, names: list[str] | None, width: int, columns: Columns) -> Choice:
    """Find the columns of a table of ``width`` columns.

    Raises:
        DataError: for a column that is not there, or several that could be the labels.
    """
    if columns.features is not None and names is not None and len(set(names)) == len(names):
        if missing := [column for column in columns.features if column not in names]:
            raise DataError(f"{name}: column {missing[0]!r} is missing{_among(names)}")
        features = [names.index(column) for column in columns.features]
        others = [i for i in range(width) if i not in set(features)]
        return Choice(features, _find_labels_beside(name, names, others, columns), names, True)
    dropped = {_find(name, "drop", column, names, width) for column in columns.drop}
    labels = [i for i in _find_labels(name, names, width, columns) if columns.label or i not in dropped]
    left_out = {*labels, *dropped}
    return Choice([i for i in range(width) if i not in left_out], labels, names, False)


def _find_labels(name: str, names: list[str] | None, width: int, columns: Columns) -> list[int]:
    if columns.label and columns.wants_labels:
        return [_find(name, "label", column, names, width) for column in columns.label]
    if names is None or not columns.wants_labels:
        return []
    found = [i for i, column in enumerate(names) if column.strip().lower() in LABEL_NAMES]
    if len(found) > 1:
        shown = ", ".join(names[i] for i in found)
        raise DataError(f"{name}: {len(found)} label columns ({shown}); choose one with label")
    return found


def _find_labels_beside(name: str, names: list[str], others: list[int], columns: Columns) -> list[int]:
    """The labels among the columns that are no features. Rows to use a model on need none."""
    if not columns.wants_labels:
        return []
    plain = {i: names[i].strip().lower() for i in others}
    if columns.label:
        wanted = [column.strip().lower() for column in columns.label]
        if not set(wanted) <= set(plain.values()):
            return []
        return [_find(name, "label", column, names, len(names)) for column in columns.label]
    named = [i for i, column in plain.items() if column in LABEL_NAMES]
    return named[:1] or [i for i in others if _ONE_HOT_NAME.fullmatch(names[i].strip())]


def make_part(
    name: str, x: np.ndarray, label_columns: Sequence[np.ndarray], choice: Choice, columns: Columns
) -> RawPart:
    """A part from the chosen columns.

    Args:
        name: begins the messages of errors.
        x: float64 [N, D], the features.
        label_columns: a vector [N] for each column of ``choice.labels``.
        choice, columns: how they were chosen.
    """
    names = None if choice.names is None else [choice.names[i] for i in choice.features]
    notes: list[str] = []
    if names and len(names) > 1 and not choice.by_name and _is_index(names[0], x[:, 0]):
        x, names = x[:, 1:], names[1:]
        notes.append("its column of row numbers left out")
    labels, source = None, ""
    if label_columns:
        taken = [str(i) if choice.names is None else choice.names[i] for i in choice.labels]
        labels, source = label_columns[0], repr(taken[0])
        if len(label_columns) > 1:
            labels, source = _from_one_hot(name, np.stack(label_columns, 1), taken), f"{len(taken)} columns"
    elif names and columns.wants_labels and not choice.by_name:
        found = [i for i, column in enumerate(names) if _ONE_HOT_NAME.fullmatch(column.strip())]
        if len(found) > 1 and _is_one_hot(x[:, found]):
            labels = _from_one_hot(name, x[:, found], [names[i] for i in found])
            source = f"{len(found)} columns"
            x, names = np.delete(x, found, axis=1), [n for i, n in enumerate(names) if i not in found]
    if names is not None and not names:
        raise DataError(f"{name}: no columns of features")
    part = check_part(name, x, labels, label_source=source, notes=tuple(notes))
    return part if names is None else replace(part, feature_names=tuple(names))


def pick_features(part: RawPart, columns: Columns) -> RawPart:
    """``part`` with the chosen features of those that have names."""
    if part.feature_names is None or not (columns.features or columns.drop):
        return part
    names = list(part.feature_names)
    kept = choose(part.name, names, len(names), replace(columns, label=("none",))).features
    x, kept_names = part.x[:, kept], tuple(names[i] for i in kept)  # pyright: ignore[reportArgumentType]
    return replace(part, x=x, feature_names=kept_names, feature_shape=(len(kept),))


_EMPTY = frozenset({"", "na", "n/a", "null", "none", "?"})


def is_empty(cell: str) -> bool:
    """True for a cell that is empty, or says so."""
    return cell.strip().lower() in _EMPTY


def number(cell: str) -> float:
    """The value of a cell; true and false are 1 and 0. ``ValueError`` for other text."""
    try:
        return float(cell)
    except ValueError:
        truth = {"true": 1.0, "false": 0.0}.get(cell.strip().lower())
        if truth is None:
            raise
        return truth


def parsed_labels(cells: Sequence[str]) -> np.ndarray:
    """Labels from text: int64 where all are integers, float64 where all are numbers, else text."""
    cells = [cell.strip() for cell in cells]
    for dtype in (int, float):
        try:
            return np.array([dtype(cell) for cell in cells])
        except (ValueError, OverflowError):
            pass
    return np.array(cells)


def _find(name: str, option: str, column: str, names: list[str] | None, width: int) -> int:
    if names is not None:
        wanted = column.strip().lower()
        for matches in (
            [i for i, known in enumerate(names) if known == column],
            [i for i, known in enumerate(names) if known.strip().lower() == wanted],
        ):
            if len(matches) == 1:
                return matches[0]
            if matches:
                raise DataError(f"{name}: {option}: {len(matches)} columns are named {column!r}")
        raise DataError(f"{name}: {option}: no column {column!r}{_among(names)}")
    try:
        place = int(column)
        return range(width)[place]
    except (ValueError, IndexError):
        raise DataError(
            f"{name}: {option}: no column {column!r}; its columns have no names and are counted from 0"
            f" to {width - 1}"
        ) from None


def _among(names: list[str]) -> str:
    shown = ", ".join(map(repr, names[:8])) + (", ..." if len(names) > 8 else "")
    return f" among {shown}"


def _is_index(name: str, x: np.ndarray) -> bool:
    """True if a column holds the row numbers that pandas writes first."""
    return name.strip().lower() in _INDEX_NAMES and np.array_equal(x, np.arange(len(x)))


def _is_one_hot(x: Any) -> bool:
    return bool(np.isin(x, (0, 1)).all() and (x.sum(axis=1) == 1).all())


def _from_one_hot(name: str, x: np.ndarray, names: list[str]) -> np.ndarray:
    if x.dtype.kind not in "biuf" or not _is_one_hot(x):
        raise DataError(
            f"{name}: label: columns {', '.join(names[:8])} are not one-hot (one 1 per row, else 0)"
        )
    classes = [match[2] if (match := _ONE_HOT_NAME.fullmatch(column.strip())) else column for column in names]
    return np.array(classes)[x.argmax(axis=1)]
