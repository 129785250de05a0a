"""Files that appear whole or not at all, locks, and a check that a folder can be written to."""

from __future__ import annotations

import errno
import os
import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None

_TEMPORARY = re.compile(r"\.tmp-[0-9a-f]{16}")


def write_whole(path: Path, content: bytes | str | Callable[[BinaryIO], object]) -> Path:
    """Write a file so that a kill at any moment leaves the old one or the new one.

    The content goes to a new file of a random name beside ``path``, which then takes its place: a link under
    the temporary name is never followed, and a link at ``path`` is replaced. The umask gives the mode.

    Args:
        path: the file, in a folder that exists.
        content: bytes, text (written as UTF-8), or a function that writes to the open file.

    Returns:
        ``path``.

    Raises:
        OSError: the file cannot be written; the error names ``path``.
    """
    try:
        with _temporary(path) as file:
            if callable(content):
                content(file)
            else:
                file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            if fcntl is None:
                file.close()  # Windows renames no open file
            os.replace(file.name, path)
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    return path


@contextmanager
def _temporary(path: Path) -> Iterator[BinaryIO]:
    """A new file beside ``path``, locked while it is open, and removed unless it was renamed."""
    while True:
        temporary = path.with_name(f".tmp-{secrets.token_hex(8)}")
        with temporary.open("xb") as file:  # x: a new file, whatever lies or points there
            if lock(file.fileno()) is False or not is_at(temporary, file.fileno()):
                continue  # taken for a leftover just now
            try:
                yield file
            finally:
                temporary.unlink(missing_ok=True)
            return


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files of :func:`write_whole` that no process writes to any more."""
    for path in folder.glob(".tmp-*"):
        if not _TEMPORARY.fullmatch(path.name) or path.is_symlink() or not path.is_file():
            continue
        with suppress(OSError), path.open("rb") as file:
            if lock(file.fileno()):
                path.unlink()


def lock(descriptor: int) -> bool | None:
    """Lock an open file until it is closed.

    Returns:
        True; False if another process holds the lock; ``None`` where the system or the file system has none.
    """
    if fcntl is None:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return False if error.errno in (errno.EWOULDBLOCK, errno.EACCES) else None
    return True


def is_at(path: Path, descriptor: int) -> bool:
    """True if a path still leads to an open file."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except OSError:
        return False


def check_writable(folder: Path) -> None:
    """Make a folder if need be; raises ``OSError`` unless files can be written there."""
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryFile(dir=folder):
        pass
