"""Opening files: compressed ones within limits, and every failure as a ``DataError``."""

from __future__ import annotations

import gzip
import io
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from ....errors import DataError, one_line

EXPANSION = 100
"""Largest ratio of a compressed file's content to its size, where the content exceeds ``FREE_BYTES``."""
FREE_BYTES = 1 << 30


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn whatever fails within into a ``DataError`` that begins with the file's name."""
    try:
        file = path.stat()
        if not stat.S_ISREG(file.st_mode):
            raise DataError(f"{path.name}: is neither a file nor a folder")
        if file.st_size == 0:
            raise DataError(f"{path.name}: empty file")
        yield
    except DataError:
        raise
    # a damaged file makes zipfile, zlib, numpy's header parser and others raise nearly anything
    except Exception as error:
        raise DataError(f"{path.name}: cannot be read: {one_line(error)}") from error


def check_size(path: Path, size: int, what: str) -> None:
    """Refuse what would take far more memory than its file.

    Raises:
        DataError: ``size`` bytes are more than 1 GiB and more than 100 times the file's own size.
    """
    if size > max(FREE_BYTES, EXPANSION * path.stat().st_size):
        raise DataError(
            f"{path.name}: {what} would take {size / 2**30:.1f} GiB, more than {EXPANSION} times the size of"
            " the file; store it uncompressed"
        )


def open_binary(path: Path) -> BinaryIO:
    """Open a file, unzipped where its name ends in .gz, for as many bytes as :func:`check_size` allows."""
    if path.suffix.lower() != ".gz":
        return path.open("rb")
    return cast(BinaryIO, io.BufferedReader(_Bounded(path)))


class _Bounded(io.RawIOBase):
    """A gzipped file that refuses to expand without limit."""

    def __init__(self, path: Path) -> None:
        self._path, self._file, self._read = path, gzip.open(path), 0  # noqa: SIM115

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview, /) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        content = self._file.read(len(buffer))
        self._read += len(content)
        check_size(self._path, self._read, "its content")
        buffer[: len(content)] = content
        return len(content)

    def close(self) -> None:
        self._file.close()
        super().close()
