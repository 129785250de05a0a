"""Signals that end a command: Ctrl-C, SIGTERM and SIGHUP."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class Interrupted(KeyboardInterrupt):
    """A signal ended the work.

    Attributes:
        number: the signal.
        run: the folder of the run that can be resumed, if any.
        command: the command that resumes it.
    """

    def __init__(self, number: int, run: Path | None = None, command: str = "train") -> None:
        super().__init__(number, run, command)
        self.number, self.run, self.command = number, run, command


@contextmanager
def handled(handler: Any) -> Iterator[None]:
    """Handle the signals by ``handler`` within the block.

    Signals that the process was told to ignore, as SIGHUP by ``nohup``, stay ignored. Outside the main
    thread, where no handler can be set, nothing changes.
    """
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        before = {
            n: signal.getsignal(n) for n in SIGNALS if signal.getsignal(n) not in (signal.SIG_IGN, None)
        }
    try:
        for number in before:
            signal.signal(number, handler)
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


class Received:
    """A handler that raises :class:`Interrupted` and keeps the signal's ``number``.

    Libraries may turn the exception into another one, above all while they are imported; the number tells.
    """

    def __init__(self) -> None:
        self.number: int | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        raise Interrupted(number)


class Interruption:
    """Within it the first signal only sets ``number``, to stop where it suits; a second stops at once.

    Args:
        settling: seconds within which a second signal is taken for the first: a terminal and a launcher may
            both send one.

    Attributes:
        number: the signal that came; 0 for none.
    """

    def __init__(self, settling: float = 0.0) -> None:
        self.number, self._came_at = 0, 0.0
        self._settling = settling
        self._handling = handled(self._request)

    def __enter__(self) -> Interruption:
        self._handling.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._handling.__exit__(*error)

    def _request(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self.number:
            self.number, self._came_at = number, now
        elif now - self._came_at >= self._settling:
            raise Interrupted(number)


def leave(number: int, frame: FrameType | None) -> None:
    """End the process at once: for the imports at its start, which may swallow any exception."""
    os.write(2, b"fastae: interrupted\n")
    os._exit(128 + number)


def ignore_signals() -> None:
    """Ignore the signals from now on."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
