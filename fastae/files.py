"""Files that are whole at every moment, and folders that are known to take them."""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryFile


def write_whole(path: Path, content: bytes | str) -> Path:
    """Write a file, text as UTF-8, so that a kill leaves the old one or the new one; returns ``path``."""
    temporary = path.with_name(f".tmp-{path.name}")
    try:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def check_writable(folder: Path) -> None:
    """Make a folder if need be; raises ``OSError`` unless files can be written there."""
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryFile(dir=folder):
        pass
