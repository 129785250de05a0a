"""Files that appear whole or not at all, and a check that a folder can be written to."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryFile
from typing import BinaryIO


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
    temporary = path.with_name(f".tmp-{secrets.token_hex(8)}")
    try:
        with temporary.open("xb") as file:  # x: a new file, whatever lies or points there
            if callable(content):
                content(file)
            else:
                file.write(content.encode() if isinstance(content, str) else content)
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)
    return path


def check_writable(folder: Path) -> None:
    """Make a folder if need be; raises ``OSError`` unless files can be written there."""
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryFile(dir=folder):
        pass
