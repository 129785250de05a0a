"""Tables as text: .csv, .tsv and .txt, plain or gzipped."""

from __future__ import annotations

import csv
import io
from array import array
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ....errors import DataError
from ..parts import RawData
from ..tables import Choice, Columns, choose, is_empty, make_part, number, parsed_labels
from .files import open_binary


def read_text(path: Path, columns: Columns) -> RawData:
    """Read rows of cells.

    The first row is a header if it names a column that is looked for (as the labels') or has no number at
    all, so that a header of column numbers with one label column is found and a mistyped cell in a first data
    row is not taken for a header.
    """
    lines = _cells(path)
    values, width = array("d"), 0
    choice: Choice | None = None
    labels: list[list[str]] = []
    for line, cells in lines:
        where = f"{path.name}: line {line}"
        if choice is None:
            width = len(cells)
            header = [cell.strip() for cell in cells]
            wanted = columns.names()
            is_header = not any(map(_is_number, cells)) or any(
                cell.lower() in wanted and not _is_number(cell) for cell in header
            )
            try:
                choice = choose(path.name, header if is_header else None, width, columns)
            except DataError as error:
                raise DataError(f"{where}{str(error).removeprefix(path.name)}") from None
            labels = [[] for _ in choice.labels]
            if is_header:
                continue
        if len(cells) != width:
            raise DataError(f"{where}: {len(cells)} cells, where the first line has {width}")
        features = [cells[i] for i in choice.features]
        try:
            values.extend(list(map(float, features)))
        except ValueError:
            if columns.missing:
                features = ["nan" if is_empty(cell) else cell for cell in features]
                cells = [*cells]
                for i, cell in zip(choice.features, features, strict=True):
                    cells[i] = cell
            if (wrong := next((i for i in choice.features if not _is_number(cells[i])), None)) is not None:
                complaint = _complaint(cells[wrong], choice, wrong)
                raise DataError(f"{where}, column {wrong + 1}: {complaint}") from None
            values.extend(list(map(number, features)))
        for i, column in zip(choice.labels, labels, strict=True):
            if not cells[i].strip():
                raise DataError(f"{where}, column {i + 1}: the label is missing")
            column.append(cells[i])
    if choice is None:
        raise DataError(f"{path.name}: no rows")
    if not choice.features:
        raise DataError(f"{path.name}: no columns of features")
    x = np.asarray(values).reshape(-1, len(choice.features))
    _check_large(path, x, choice)
    return RawData(make_part(path.name, x, [parsed_labels(column) for column in labels], choice, columns))


def _check_large(path: Path, x: np.ndarray, choice: Choice) -> None:
    """Refuse integers that float64 rounds to one value."""
    large = np.abs(x).max(axis=0, initial=0) >= 2.0**53
    if not large.any():
        return
    written: dict[int, set[str]] = {int(i): set() for i in np.flatnonzero(large)}
    lines = _cells(path)
    if choice.names is not None:
        next(lines)
    for _, cells in lines:
        for i, texts in written.items():
            texts.add(cells[choice.features[i]].strip())
    for i, texts in written.items():
        if all(text.lstrip("+-").isdigit() for text in texts) and len(set(map(int, texts))) > len(
            np.unique(x[:, i])
        ):
            raise DataError(
                f"{path.name}: column {choice.features[i] + 1} has integers that float64 cannot keep apart;"
                " subtract a constant from them"
            )


def read_label_text(path: Path) -> list[str]:
    """Labels from a file of one column, one per row, with its header where there is one."""
    column: list[str] = []
    for line, cells in _cells(path):
        if len(cells) != 1:
            raise DataError(f"{path.name}: line {line}: {len(cells)} cells, where a file of labels has one")
        column += cells
    return column


def _cells(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The cells of every line that is not blank, with its number."""
    with io.TextIOWrapper(open_binary(path), encoding="utf-8-sig", newline="") as file:
        first = next((line for line in file if line.strip()), "")
        delimiter = _delimiter(first, Path(path.name.lower().removesuffix(".gz")).suffix)
    with io.TextIOWrapper(open_binary(path), encoding="utf-8-sig", newline="") as file:
        if delimiter is None:
            for line, text in enumerate(file, 1):
                if cells := text.partition("#")[0].split():
                    yield line, cells
            return
        lines = csv.reader(file, delimiter=delimiter)
        for cells in lines:
            if cells:
                if delimiter == ";":  # where the comma is taken, it is the decimal point
                    cells = [_with_point(cell) for cell in cells]
                yield lines.line_num, cells


def _delimiter(line: str, suffix: str) -> str | None:
    """Separator of the cells; None for white space."""
    if suffix == ".tsv":
        return "\t"
    for delimiter in ";\t,":
        if delimiter in line:
            return delimiter
    return None if suffix == ".txt" else ","


def _with_point(cell: str) -> str:
    whole, comma, rest = cell.partition(",")
    return f"{whole}.{rest}" if comma and _is_number(f"{whole}.{rest}") else cell


def _complaint(cell: str, choice: Choice, column: int) -> str:
    if not cell.strip():
        return "'' is not a number; with missing, empty cells are left out"
    name = str(column) if choice.names is None else choice.names[column]
    return f"{cell[:40]!r} is not a number; take the column as label or drop it ({name})"


def _is_number(cell: str) -> bool:
    try:
        number(cell)
    except ValueError:
        return False
    return True
