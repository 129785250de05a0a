"""Output for people: any encoding, any width, and text as it is."""

from __future__ import annotations

import codecs
import io
import os
import sys
import unicodedata
from collections.abc import Collection, Sequence
from typing import Any

import rich.console
from rich.box import SIMPLE
from rich.cells import cell_len
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

_NO_LIMIT = 100_000  # columns
_REPLACE = "fastae.replace"
_READINGS = {
    "\u00b1": "+-",
    "\u00b2": "^2",
    "\u00b5": "u",
    "\u00d7": "x",
    "\u2016": "|",
    "\u2192": "->",
    "\u2202": "d",
}


class Console(rich.console.Console):
    """A console that prints strings as they are.

    Nothing is read as markup, and control characters are made visible, so that a name from a file can
    neither change its look nor the terminal. Lines are left whole; a terminal wraps them. The width is
    COLUMNS, else that of the terminal, else without limit.
    """

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, markup=False, emoji=False, highlight=False, soft_wrap=True)
        if not self.is_terminal and not os.environ.get("COLUMNS", "").isdigit():
            self.width = _NO_LIMIT

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(visible(text), **options)


def print_table(
    console: rich.console.Console,
    rows: Sequence[Sequence[str]],
    header: Sequence[str] = (),
    title: str = "",
    text: Collection[int] = (0,),
) -> None:
    """Print cells in columns where the width is enough for them, else below each other.

    Args:
        console: where to print.
        rows: cells, of one length.
        header: names of the columns; without them a row is a name and its value.
        title: printed above.
        text: numbers of the columns to align to the left; the others are aligned to the right.
    """

    def show(line: str, style: str = "") -> None:
        console.print(Text(visible(line), style), soft_wrap=True)

    if title:
        show(title, "bold")
    table = Table(box=SIMPLE if header else None, show_header=bool(header), pad_edge=True)
    for number in range(len(rows[0]) if rows else len(header)):
        name = Text(header[number] if header else "")
        table.add_column(name, justify="left" if number in text else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(Text(visible(cell)) for cell in row))
    if Measurement.get(console, console.options.update(width=_NO_LIMIT), table).maximum <= console.width:
        console.print(table)
        return
    width = max((cell_len(name) for name in header), default=0)
    for row in rows:
        if header:
            names = (name + " " * (width - cell_len(name)) for name in header)
            lines = [f"  {name}  {cell}" for name, cell in zip(names, row, strict=True)]
        else:
            lines = [f"  {cell}" if number else cell for number, cell in enumerate(row)]
        show("\n".join([*lines, ""] if header else lines))


def visible(text: str) -> str:
    """``text`` with control characters, other than line ends and tabs, as backslash escapes."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        repr(character)[1:-1]
        if unicodedata.category(character) in ("Cc", "Cf", "Cs") and character not in "\n\t\u200d"
        else character
        for character in text
    )


def tolerate_encodings() -> None:
    """Have standard output and error replace characters that they cannot encode."""
    codecs.register_error(_REPLACE, _replace)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_REPLACE)


def _replace(error: UnicodeError) -> tuple[str, int]:
    """A reading of our own symbols, and backslash escapes of all else."""
    assert isinstance(error, UnicodeEncodeError)
    text = error.object[error.start : error.end]
    escaped = (_READINGS.get(c) or c.encode("ascii", "backslashreplace").decode() for c in text)
    return "".join(escaped), error.end
