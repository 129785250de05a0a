"""Errors that name a file or a run; wrong arguments raise ``ValueError`` or ``TypeError``."""

from __future__ import annotations

_LONGEST = 500  # characters of a message


def one_line(text: object) -> str:
    """Text from elsewhere (a file, another library's error) as one printable line of bounded length."""
    line = " ".join(str(text).split())
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST - 4]} ..."


def first_line(error: BaseException) -> str:
    """The kind of an error and the first line of its message."""
    message = next(iter(str(error).strip().splitlines()), "")
    return one_line(f"{type(error).__name__}: {message}".rstrip(": "))


class FileError(ValueError):
    """A fault of a file or folder. The message is one printable line, whatever characters its names have."""

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


class DataError(FileError):
    """A data file or data set that cannot be used."""


class MissingPackageError(ImportError, DataError):
    """An optional package that is not installed; the message names the extra that installs it."""


class CheckpointError(FileError):
    """A run or checkpoint folder that cannot be read, written or continued."""


class TrainingError(RuntimeError):
    """Training that cannot go on; what was saved before stays."""
