"""Data sets by name, by path, or from arrays, as scaled rows with labels."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np

from ...errors import DataError
from .labels import check_classes, check_labels, find_classes
from .named import NAMES, read_named
from .parts import RawData, RawPart, check_part, select_columns
from .rows import Rows, split_index
from .scaling import AffineScaling, Scaling, check_offset, fit_scaling
from .sources import file_name, read_labels, read_source
from .tables import Columns

_SHOWN_NAMES = 2


@dataclass(frozen=True, eq=False)
class Dataset:
    """A train part and, where there is one, a test part, both scaled by what was fitted on the train part.

    Attributes:
        name: the data set's or the file's name.
        train: rows to train on.
        test: rows to evaluate on, of the same width, or None.
        feature_shape: the shape of one row before flattening, as (28, 28).
        scaling: what ``train`` and ``test`` apply.
        feature_names: one name per column, where there are names.
        label_source: the column, array or file that the labels were taken from, or "".
        notes: what was left out in reading.
        missing: whether NaN stands for missing values.
        paths: the absolute paths of what was given as ``data``, ``test`` and ``labels``, where it is a file.
    """

    name: str
    train: Rows
    test: Rows | None
    feature_shape: tuple[int, ...]
    scaling: AffineScaling
    feature_names: tuple[str, ...] | None = None
    label_source: str = ""
    notes: tuple[str, ...] = ()
    missing: bool = False
    paths: Mapping[str, str] = field(default_factory=dict)

    @property
    def width(self) -> int:
        """D, the number of columns."""
        return self.train.width

    @property
    def classes(self) -> np.ndarray | None:
        """The different labels of both parts [K], which ``targets`` number; None where there are none."""
        return self.train.classes

    @property
    def num_classes(self) -> int | None:
        """K, or None without train labels and where they are no classes."""
        return None if self.train.labels is None or self.classes is None else len(self.classes)

    @property
    def origin(self) -> str:
        """The absolute path of the file of ``data``, or the name where it is no file."""
        return self.paths.get("data", self.name)

    def check_classes(self) -> int:
        """The number of classes; ``ValueError`` where a classifier cannot be trained on the labels."""
        return check_classes(self.name, self.train.labels, self.classes)

    def describe(self) -> str:
        """One line on what was read: rows, features, labels, scaling."""
        facts = [f"{len(self.train)} rows"]
        if self.test is not None:
            facts[0] = f"{len(self.train)} rows to train on and {len(self.test)} to test on"
        features = f"{self.width} feature{'s' * (self.width > 1)}"
        if self.feature_names is not None:
            more = ", ..." if len(self.feature_names) > _SHOWN_NAMES else ""
            features += f" ({', '.join(self.feature_names[:_SHOWN_NAMES])}{more})"
        elif len(self.feature_shape) > 1:
            features += f" ({' x '.join(map(str, self.feature_shape))})"
        facts.append(features)
        if self.train.labels is None:
            facts.append("no labels")
        else:
            source = f" from {self.label_source}" if self.label_source else ""
            kind = "continuous" if self.num_classes is None else f"{self.num_classes} classes"
            facts.append(f"labels{source} ({kind})")
        facts.append(f"scaling {self.scaling.name}{'' if self.scaling.width is None else ' per column'}")
        return f"{self.name}: {', '.join([*facts, *self.notes])}"


def load_dataset(
    data: str,
    *,
    test: str | None = None,
    scaling: Scaling | AffineScaling = "auto",
    label: str | Sequence[str] | None = None,
    labels: str | None = None,
    drop: Sequence[str] = (),
    test_fraction: float = 0.0,
    seed: int = 0,
    missing: bool = False,
    features: Sequence[str] | None = None,
    classes: np.ndarray | None = None,
    cache_dir: Path | None = None,
    download: bool = True,
) -> Dataset:
    """Load a data set by name or path. Values become float32; dimensions after the first are flattened.

    By name: ``mnist`` and ``fashion-mnist`` (downloaded once, with pinned checksums), and scikit-learn's
    ``digits`` (8x8; 1500 rows to train on and 297 to test, stratified by label with seed 0). By path:

    ================== ===================================================================================
    ``.npy``           one array, memory-mapped
    ``.npz``           x and optionally y, x_test, y_test, or names like x_train and train_images; or one
                       array of any name; or a SciPy sparse matrix
    ``.safetensors``   the same names; or one tensor of any name
    ``.pt`` ``.pth``   a tensor, a pair of rows and labels, or the same names; only tensors are unpickled
    ``.csv`` ``.tsv``  a table with or without a header, separated by commas, semicolons or tabs; also ``.gz``
    ``.txt``           the same, or separated by white space
    ``.parquet``       a table, by pyarrow; also ``.feather``
    ``.h5`` ``.hdf5``  named arrays, by h5py
    ``.h5ad``          X of AnnData, with the names of ``var`` and labels from a column of ``obs``
    ``*-idx3-ubyte``   one IDX array, plain or ``.gz``
    a folder           shards: ``.safetensors``, ``.npy``, ``.parquet`` or ``.arrow`` files of rows of one
                       width, which need not fit in memory; see :class:`Shards`
    a folder           the four IDX files under the names that MNIST gave them, plain or ``.gz``; or images of
                       one size, in one folder per class, perhaps in folders named train and test
    ================== ===================================================================================

    A compressed file may expand to 1 GiB, or to 100 times its size.

    Labels are text, booleans, numbers or one-hot. A table's column named label, target, class or y (or
    one-hot columns named so, as ``label_cat``) gives them unless ``label`` or ``labels`` say otherwise.
    Training takes their numbers 0..K-1 among ``classes``. Continuous labels are kept, but are no classes.

    Args:
        data: a name, else a path (``./digits`` for a file of that name).
        test: path of the test part, where ``data`` has none.
        scaling: fitted on the train part only, or one that was fitted before. ``none`` leaves values as they
            are; ``unit`` takes the range of all values to [0, 1], ``minmax`` that of each column, and
            ``standard`` gives each column mean 0 and deviation 1; a constant column becomes 0. ``auto``
            divides uint8 by 255, leaves what lies in [0, 1] alone, and takes ``minmax`` for tables of unlike
            columns (one has less than a tenth of the whole range), else ``unit``; sparse rows, which can
            have no offset, are divided by their largest magnitude, per column where columns are unlike.
        label: the column (or the array of a file of named arrays) with the labels, or several one-hot
            columns; "none" for no labels. Columns without names are counted from 0.
        labels: path of a file with the labels of the train part, where ``data`` has none.
        drop: columns of a table to leave out.
        test_fraction: share of the rows to hold out as the test part, where there is none.
        seed: of the choice of these rows.
        missing: whether values may be missing: NaN, and empty cells of a table. Scaling leaves them NaN.
        features: the columns of a table to take as features, in this order; by default all others.
        classes: classes found before, which come first.
        cache_dir: where downloads are kept; None for the user's cache folder.
        download: whether a named data set may be downloaded.

    Raises:
        DataError: for data that cannot be found, read or used, or that ``scaling`` does not fit.
        ValueError: for an unknown ``scaling``.
    """
    _check_scaling(scaling)
    wanted = (label,) if isinstance(label, str) else tuple(label or ())
    columns = Columns(wanted, tuple(drop), None if features is None else tuple(features), missing)
    name, raw = _read_data(data, columns, cache_dir, download)
    raw = _add_parts(name, raw, columns, test, labels)
    dataset = _make_dataset(name, raw.train, raw.test, scaling, classes, test_fraction, seed, missing)
    given = {"data": None if data in NAMES else data, "test": test, "labels": labels}
    return replace(
        dataset, paths={key: str(_absolute(path)) for key, path in given.items() if path is not None}
    )


def dataset_from_arrays(
    name: str,
    x: Any,
    labels: Any = None,
    x_test: Any = None,
    labels_test: Any = None,
    *,
    scaling: Scaling | AffineScaling = "auto",
    test_fraction: float = 0.0,
    seed: int = 0,
    missing: bool = False,
    classes: np.ndarray | None = None,
) -> Dataset:
    """Make a data set of rows in memory.

    Args:
        name: begins the messages of errors.
        x: rows [N, ...] as an array, a tensor, a list, a data frame of numbers, or a SciPy sparse matrix.
        labels: [N], text, booleans or numbers; or one-hot rows [N, K].
        x_test, labels_test: the same of a test part.
        scaling, test_fraction, seed, missing, classes: as for :func:`load_dataset`.

    Raises:
        DataError: for rows that cannot be used, or that ``scaling`` does not fit; begins with ``name``.
        ValueError: for an unknown ``scaling``.
    """
    _check_scaling(scaling)
    train, held_out = check_part(name, x, labels), None
    if x_test is not None:
        part = f"{name}, test part"
        held_out = check_part(part, select_columns(part, x_test, train.feature_names), labels_test)
    return _make_dataset(name, train, held_out, scaling, classes, test_fraction, seed, missing)


def _check_scaling(scaling: Scaling | AffineScaling) -> None:
    if isinstance(scaling, str) and scaling not in get_args(Scaling):
        raise ValueError(f"scaling: {scaling!r} is not one of {', '.join(get_args(Scaling))}")


def _make_dataset(
    name: str,
    train: RawPart,
    held_out: RawPart | None,
    scaling: Scaling | AffineScaling,
    classes: np.ndarray | None,
    test_fraction: float,
    seed: int,
    missing: bool,
) -> Dataset:
    parts = [part for part in (train, held_out) if part is not None]
    for part in parts:
        if not missing:
            part.check_defined()
    missing = any(part.undefined is not None for part in parts)
    if held_out is not None and held_out.width != train.width:
        raise DataError(f"{held_out.name}: {held_out.width} columns, where the train part has {train.width}")
    index = test_index = None
    if test_fraction:
        if held_out is not None:
            raise DataError(f"{name}: has a test part of its own, so test_fraction cannot hold out another")
        try:
            index, test_index = split_index(train.x.shape[0], test_fraction, seed, train.x)
        except ValueError as error:
            raise ValueError(f"test_fraction: {error}") from None
    fitted = scaling if isinstance(scaling, AffineScaling) else fit_scaling(train, scaling, index)
    found = find_classes(name, train.labels, None if held_out is None else held_out.labels, classes)
    rows = _scaled_rows(train, fitted, found)
    test = None if held_out is None else _scaled_rows(held_out, fitted, found)
    if index is not None and test_index is not None:
        rows, test = rows.subset(index), rows.subset(test_index)
    notes = train.notes
    if train.undefined is not None:
        notes += (f"{(count := train.undefined[0])} value{'s' * (count > 1)} missing",)
    return Dataset(
        name, rows, test, train.feature_shape, fitted, train.feature_names, train.label_source, notes, missing
    )


def _scaled_rows(part: RawPart, scaling: AffineScaling, classes: np.ndarray | None) -> Rows:
    if scaling.width not in (None, part.width):
        raise DataError(f"{part.name}: {part.width} columns, where the scaling has {scaling.width}")
    check_offset(part, scaling)
    return Rows(part.x, part.labels, scaling, None, classes)


def _read_data(data: str, columns: Columns, cache_dir: Path | None, download: bool) -> tuple[str, RawData]:
    """The data set's name and its rows."""
    if data in NAMES:
        if columns.drop or (columns.label and columns.wants_labels):
            raise DataError(f"{data}: has no columns to choose from by label or drop")
        return data, read_named(data, cache_dir, download=download)
    path = Path(data)
    if not os.path.lexists(_absolute(data)) and not path.suffix and path.name == data:
        close = difflib.get_close_matches(data.lower(), NAMES, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise DataError(f"{data}: no such data set or file; {hint}known data sets: {', '.join(NAMES)}")
    path = _absolute(data)
    return file_name(path), read_source(path, columns)


def _add_parts(name: str, raw: RawData, columns: Columns, test: str | None, labels: str | None) -> RawData:
    """The parts of a data set with a test part and labels from files of their own, or without any labels."""
    train, held_out = raw.train, raw.test
    if test is not None:
        held_out = _read_test(_absolute(test), name, raw, columns)
    if not columns.wants_labels:
        train = replace(train, labels=None)
        held_out = None if held_out is None else replace(held_out, labels=None)
    if labels is not None:
        train = _with_labels(train, _absolute(labels))
    return RawData(train, held_out)


def _absolute(path: str) -> Path:
    """An absolute path without following links, which may form a loop."""
    return Path(os.path.abspath(os.path.expanduser(path)))


def _read_test(path: Path, name: str, raw: RawData, columns: Columns) -> RawPart:
    if raw.test is not None:
        raise DataError(f"{name}: has a test part of its own, so none can be given ({path.name})")
    if raw.train.feature_names is not None:  # the same columns, whatever their order in this file
        columns = replace(columns, features=raw.train.feature_names, drop=())
    source = read_source(path, columns)
    if source.test is not None:
        raise DataError(
            f"{source.train.name}: has a train and a test part; give a file with one part as the test part"
        )
    return source.train


def _with_labels(part: RawPart, path: Path) -> RawPart:
    if part.labels is not None:
        source = f" ({part.label_source})" if part.label_source else ""
        raise DataError(f"{part.name}: has labels of its own{source}, so labels cannot give others")
    rows = part.x.shape[0]
    found = check_labels(f"{part.name}: labels of {path.name}", read_labels(path, rows), rows)
    return replace(part, labels=found, label_source=path.name)
