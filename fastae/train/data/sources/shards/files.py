"""Files of rows that are read in place: .npy, .safetensors, Parquet and Arrow."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.lib.format import open_memmap
from safetensors import safe_open

from .....errors import DataError
from .....optional import require
from ...parts import stack_columns
from ...tables import Columns, choose
from ..arrays import X_NAMES, Y_NAMES

ROWS = "rows"
"""The name of the rows in the files that :class:`~.writer.ShardWriter` makes."""
_DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "BOOL": "bool",
    "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8",
    "U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8",
}  # fmt: skip


class Handle(Protocol):
    """An open file of rows."""

    def read_into(self, rows: np.ndarray, out: np.ndarray) -> None:
        """Read rows, by rising numbers, into an array [B, D] of the stored dtype."""
        ...


@dataclass(frozen=True, eq=False)
class Piece:
    """What one file holds.

    Attributes:
        path: of the file.
        rows: their number.
        feature_shape: the shape of one row.
        kind: the stored dtype by name, as "bfloat16".
        open: opens the file.
        edges: first row of each block that can only be read as a whole, and the number of rows; int64.
        labels: reads the labels [N], where there are any.
        feature_names: one name per column, where there are names.
    """

    path: Path
    rows: int
    feature_shape: tuple[int, ...]
    kind: str
    open: Callable[[], Handle]
    edges: np.ndarray | None = None
    labels: Callable[[], np.ndarray] | None = None
    feature_names: tuple[str, ...] | None = None

    @property
    def width(self) -> int:
        """D, the number of columns."""
        return math.prod(self.feature_shape)


def stored_dtype(kind: str) -> np.dtype:
    """NumPy's dtype for stored values; bfloat16, which it does not have, as the bits."""
    return np.dtype(np.uint16 if kind == "bfloat16" else kind)


class _Mapped:
    """A memory map of rows [N, D]."""

    def __init__(self, values: np.ndarray) -> None:
        self._values = values

    def read_into(self, rows: np.ndarray, out: np.ndarray) -> None:
        if len(rows) and rows[-1] - rows[0] + 1 == len(rows):
            out[...] = self._values[rows[0] : rows[-1] + 1]
        else:
            np.take(self._values, rows, axis=0, out=out, mode="clip")  # other modes take a copy first


def open_npy(path: Path, columns: Columns) -> Piece:
    """One array [R, ...] in C order."""
    values = open_memmap(path, mode="r")
    if values.ndim < 2 or not values.flags.c_contiguous or not values.dtype.isnative:
        raise DataError(
            f"{path.name}: expected [rows, columns] of native C order, got {values.dtype} {values.shape}"
        )
    rows, shape, kind = len(values), values.shape[1:], str(values.dtype)
    return Piece(path, rows, shape, kind, lambda: _Mapped(open_memmap(path, mode="r").reshape(rows, -1)))


def open_safetensors(path: Path, columns: Columns) -> Piece:
    """One tensor, or one named rows or as for a single file; labels beside it."""
    with safe_open(path, framework="np") as tensors:  # which checks the header
        keys = list(tensors.keys())
    named = [key for key in keys if key.lower() in (ROWS, "activations", "embeddings", *X_NAMES)]
    if not named and len(keys) == 1:
        named = keys
    if len(named) != 1:
        found = ", ".join(named or keys) or "nothing"
        raise DataError(f"{path.name}: expected one tensor named rows (and labels beside it), got {found}")
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    entry = header[named[0]]
    rows, *shape = entry["shape"] or [0]
    kind = _DTYPES.get(entry["dtype"])
    if kind is None or not shape:
        raise DataError(
            f"{path.name}: expected [rows, columns] of numbers, got {entry['dtype']} {entry['shape']}"
        )
    start = 8 + length + entry["data_offsets"][0]

    def open_map() -> Handle:
        return _Mapped(np.memmap(path, stored_dtype(kind), "r", start, (rows, math.prod(shape))))

    def read_labels() -> np.ndarray:
        with safe_open(path, framework="np") as tensors:
            return tensors.get_tensor(label)

    wanted = columns.label if columns.label else Y_NAMES
    label = next((key for key in keys if key in wanted or key.lower() in wanted), "")
    reads = read_labels if label and columns.wants_labels else None
    return Piece(path, rows, tuple(shape), kind, open_map, labels=reads)


class _Table:
    """A file of columns, of which one block is kept in memory."""

    def __init__(self, read: Callable[[int], np.ndarray], edges: np.ndarray) -> None:
        self._read, self._edges = read, edges
        self._number, self._block = -1, np.empty(0)

    def read_into(self, rows: np.ndarray, out: np.ndarray) -> None:
        places = np.searchsorted(rows, self._edges)
        for number in np.flatnonzero(np.diff(places)):
            if number != self._number:
                self._number, self._block = -1, np.empty(0)  # or two would be in memory
                self._block, self._number = self._read(int(number)), int(number)
            part = slice(*places[number : number + 2])
            np.take(self._block, rows[part] - self._edges[number], axis=0, out=out[part], mode="clip")


def open_parquet(path: Path, columns: Columns) -> Piece:
    """A Parquet file, of which a row group is read at once."""
    parquet = require("pyarrow.parquet", path.name, "data")

    def open_file() -> tuple[Any, Callable[[int, list[str]], Any]]:
        file = parquet.ParquetFile(path, memory_map=True)
        return file, lambda group, names: file.read_row_group(group, names)

    file, _ = open_file()
    groups = [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)]
    return _open_table(path, file.schema_arrow, groups, lambda: open_file()[1], columns, whole=True)


def open_arrow(path: Path, columns: Columns) -> Piece:
    """An Arrow file or stream, memory-mapped."""
    arrow = require("pyarrow", path.name, "data")

    def open_file() -> Any:
        source = arrow.memory_map(str(path))
        try:
            return arrow.ipc.open_file(source).read_all()
        except arrow.ArrowInvalid:
            source.seek(0)
            return arrow.ipc.open_stream(source).read_all()

    def reader() -> Callable[[int, list[str]], Any]:
        batches = open_file().to_batches()
        return lambda number, names: arrow.Table.from_batches([batches[number]]).select(names)

    table = open_file()
    batches = [batch.num_rows for batch in table.to_batches()]
    return _open_table(path, table.schema, batches, reader, columns, whole=False)


def _open_table(
    path: Path,
    schema: Any,
    blocks: Sequence[int],
    reader: Callable[[], Callable[[int, list[str]], Any]],
    columns: Columns,
    *,
    whole: bool,
) -> Piece:
    """A piece from a schema, the rows of each block, and a function that opens a reader of blocks."""
    names: list[str] = list(schema.names)
    if len(set(names)) < len(names):
        raise DataError(f"{path.name}: several columns have one name")
    edges = np.concatenate([[0], np.cumsum(blocks, dtype=np.int64)]).astype(np.int64)
    choice = choose(path.name, names, len(names), columns)
    features, labels = [names[i] for i in choice.features], [names[i] for i in choice.labels]
    if lists := [name for name in features if _is_list(schema.field(name).type)]:
        features = lists
    if len(lists) > 1:
        raise DataError(f"{path.name}: {len(lists)} columns of lists ({', '.join(lists)}); drop all but one")
    if len(labels) > 1:
        raise DataError(f"{path.name}: shards take one column of labels, got {', '.join(labels)}")

    def read_block(read: Callable[[int, list[str]], Any]) -> Callable[[int], np.ndarray]:
        return lambda number: _features(path.name, read(number, features), features)

    sample = read_block(reader())(0) if len(edges) > 1 else np.empty((0, 0))

    def open_handle() -> Handle:
        read = read_block(reader())

        def checked(number: int) -> np.ndarray:
            block = read(number)
            if block.shape[1:] != sample.shape[1:] or block.dtype != sample.dtype:
                raise DataError(
                    f"{path.name}: rows {edges[number]} on are {block.dtype} of {block.shape[1]} columns,"
                    f" the first ones {sample.dtype} of {sample.shape[1]}"
                )
            return block

        return _Table(checked, edges)

    def read_labels() -> np.ndarray:
        read = reader()
        found = [_plain(path.name, labels[0], read(i, labels).column(0)) for i in range(len(blocks))]
        return np.concatenate(found)

    return Piece(
        path,
        int(edges[-1]),
        sample.shape[1:],
        str(sample.dtype),
        open_handle,
        edges if whole else None,
        read_labels if labels else None,
        None if lists else tuple(features),
    )


def _is_list(kind: Any) -> bool:
    types = require("pyarrow.types", "tables", "data")
    return types.is_fixed_size_list(kind) or types.is_list(kind) or types.is_large_list(kind)


def _plain(name: str, column: str, values: Any) -> np.ndarray:
    """A column as an array [N]; ``DataError`` for empty cells."""
    if values.null_count:
        row = int(np.argmax(values.is_null().to_numpy()))
        raise DataError(f"{name}: row {row} of a block of column {column!r} is empty")
    return np.asarray(values.to_numpy())


def _features(name: str, table: Any, features: list[str]) -> np.ndarray:
    """The rows [N, D] of a block: of one column of lists, or of a column per feature."""
    columns = [table.column(feature) for feature in features]
    if len(columns) == 1 and _is_list(columns[0].type):
        values = columns[0].combine_chunks()
        if values.null_count:
            raise DataError(f"{name}: column {features[0]!r} has empty rows")
        lengths = {len(values[i]) for i in range(min(1, len(values)))}
        if not require("pyarrow.types", name, "data").is_fixed_size_list(values.type):
            lengths = set(np.unique(values.value_lengths().to_numpy()))
        if len(lengths) != 1:
            raise DataError(f"{name}: lists of column {features[0]!r} have {sorted(lengths)} numbers")
        flat = values.flatten().to_numpy(zero_copy_only=False)
        rows = flat.reshape(len(values), -1)
    else:
        arrays = [_plain(name, f, column) for f, column in zip(features, columns, strict=True)]
        rows = stack_columns(name, arrays, table.num_rows)
    if rows.dtype.kind not in "buif":
        raise DataError(f"{name}: columns {', '.join(features[:4])} are not all numbers ({rows.dtype})")
    return rows
