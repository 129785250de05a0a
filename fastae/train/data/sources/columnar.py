"""Tables of columns: Parquet and Feather, by pyarrow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ....errors import DataError
from ....optional import require
from ..parts import RawData, stack_columns
from ..tables import Columns, choose, make_part
from .files import check_size


def read_parquet(path: Path, columns: Columns) -> RawData:
    """Read the chosen columns of a Parquet file."""
    file = require("pyarrow.parquet", path.name, "data").ParquetFile(path, memory_map=True)
    return _read(path, file.schema_arrow, file.metadata.num_rows, lambda names: file.read(names), columns)


def read_feather(path: Path, columns: Columns) -> RawData:
    """Read the chosen columns of a Feather (Arrow IPC) file."""
    feather = require("pyarrow.feather", path.name, "data")
    table = feather.read_table(path, memory_map=True)
    return _read(path, table.schema, table.num_rows, table.select, columns)


def _read(path: Path, schema: Any, rows: int, read: Any, columns: Columns) -> RawData:
    names: list[str] = list(schema.names)
    if len(set(names)) < len(names):
        raise DataError(f"{path.name}: several columns have one name")
    choice = choose(path.name, names, len(names), columns)
    check_size(path, 8 * rows * len(choice.features), "its columns")
    table = read([names[i] for i in dict.fromkeys([*choice.features, *choice.labels])])
    features = [
        _values(path.name, names[i], table.column(names[i]), columns.missing) for i in choice.features
    ]
    for i, values in zip(choice.features, features, strict=True):
        if values.dtype.kind not in "biuf":
            kind = schema.field(i).type
            raise DataError(
                f"{path.name}: column {names[i]!r} is not numbers, but {kind}; take it as label or drop it"
            )
    labels = [_values(path.name, names[i], table.column(names[i])) for i in choice.labels]
    x = stack_columns(path.name, features, rows)
    return RawData(make_part(path.name, x, labels, choice, columns))


def _values(name: str, column: str, values: Any, missing: bool = False) -> np.ndarray:
    """A column as an array, [N]; text as objects, and empty values as NaN where they may be ``missing``."""
    if values.null_count and missing:
        return np.asarray((values.cast("float64") if str(values.type) == "bool" else values).to_numpy())
    if values.null_count:
        row = int(np.argmax(values.is_null().to_numpy()))
        raise DataError(f"{name}: row {row} of column {column!r} is empty (counted from 0)")
    return np.asarray(values.to_numpy())
