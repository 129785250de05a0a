"""The folder of a run: its choice, and a lock that keeps a second process out."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import CheckpointError
from ..files import is_at, lock, write_whole
from .checkpoint import find_checkpoint

DICTIONARY_FILES = DICTIONARY_STATE, DICTIONARY_RUN = "training.safetensors", "train.json"
"""What a dictionary's run has, while it trains and at its end."""

_LOCK = ".lock"
_LAUNCH = ".launch"


def _launch() -> tuple[str, str] | None:
    """(name, launcher's process) of the launch that this process belongs to, by PyTorch's launcher."""
    name = os.environ.get("TORCHELASTIC_RUN_ID")
    return None if name is None else (name, f"{os.getppid()} on {socket.gethostname()}")


def mark_launch(folder: Path) -> None:
    """Note which launch a run belongs to, so that processes which are started again find it."""
    launch = _launch()
    if launch is not None:
        write_whole(folder / _LAUNCH, "\n".join(launch))


def folder_of_launch(out: str | None, name: str | None = None) -> Path | None:
    """The folder of the run that processes of this launch, or of that called ``name``, have begun, if any."""
    launch = _launch() if name is None else (name, "")
    if launch is None:
        return None
    restarted = launch[0] != "none" and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
    restarted = restarted or name is not None
    for folder in Path("runs").glob("*") if out is None else [Path(out)]:
        with suppress(OSError, ValueError):
            marked, launcher = (folder / _LAUNCH).read_text(encoding="utf-8").split("\n")
            if marked == launch[0] and (restarted or launcher == launch[1]):
                return folder
    return None


def make_folder(out: str | None, name: str) -> Path:
    """Make the folder of a new run: ``out``, or the first of runs/<name>, runs/<name>-2, ... that is free.

    Raises:
        CheckpointError: it cannot be made, or holds a run already.
    """
    if out is None:
        base = Path("runs") / Path(name).name.split(".")[0]
        number, folder = 1, base
        while not _make(folder, exist_ok=False):
            number += 1
            folder = base.with_name(f"{base.name}-{number}")
        return folder
    _make(Path(out), exist_ok=True)
    return Path(out)


def _make(folder: Path, exist_ok: bool) -> bool:
    """True if the folder was made, or may be there."""
    try:
        folder.mkdir(parents=True, exist_ok=exist_ok)
    except OSError as error:
        if isinstance(error, FileExistsError) and not exist_ok:
            return False
        raise CheckpointError(f"out: {folder} cannot be made ({error.strerror})") from error
    return True


def check_new(out: str | None) -> None:
    """Refuse a folder for a new run that is a file or holds a run, before any work."""
    if out is None:
        return
    folder = Path(out)
    if os.path.lexists(folder) and not folder.is_dir():
        raise CheckpointError(f"out: {folder} is a file; a run needs a folder")
    _refuse_dictionary(folder)
    if has_checkpoint(folder):
        raise CheckpointError(
            f"out: {folder} holds a run already; continue it with resume (--resume) or choose another folder"
        )


def has_checkpoint(folder: Path) -> bool:
    """True if a folder holds a checkpoint, or is one."""
    try:
        find_checkpoint(folder)
    except CheckpointError:
        return False
    return True


def check_run(out: str) -> None:
    """Refuse to continue a single checkpoint in place of its run, and a dictionary's run."""
    _refuse_dictionary(Path(out))
    if (Path(out) / "config.json").is_file():
        raise CheckpointError(f"out: {out} is a single checkpoint; give the folder of its run")
    find_checkpoint(out)


def _refuse_dictionary(folder: Path) -> None:
    if any((folder / name).exists() for name in DICTIONARY_FILES):
        raise CheckpointError(f"out: {folder} holds a run of fastae sae train; choose another folder")


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder against other processes, where the system has locks and the folder can be written.

    Raises:
        CheckpointError: another process trains there.
    """
    descriptor = _acquire(folder / _LOCK)
    try:
        yield
    finally:
        if descriptor is not None:
            with suppress(OSError):
                (folder / _LOCK).unlink()
            os.close(descriptor)


def _acquire(path: Path) -> int | None:
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
    while True:
        try:
            descriptor = os.open(path, flags, 0o666)
        except OSError:
            return None  # a finished run may be read-only; training will fail by itself
        held = lock(descriptor)
        if held is False:
            process = os.read(descriptor, 20).decode(errors="replace")
            os.close(descriptor)
            raise CheckpointError(f"out: {path.parent} is in use: process {process or '?'} is training there")
        if held is None or is_at(path, descriptor):
            with suppress(OSError):
                os.truncate(descriptor, 0)
                os.write(descriptor, str(os.getpid()).encode())
            return descriptor
        os.close(descriptor)  # the holder before removed the file in between
