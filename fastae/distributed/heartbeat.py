"""A thread that tells the other processes how far this one is, and ends it where one keeps it waiting.

A collective that waits in a library cannot be left by an exception, and its own limit names nobody.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import torch

from .world import World

if TYPE_CHECKING:
    from typing_extensions import Self

_LONGEST_INTERVAL = 2.0


class Heartbeat:
    """Publishes how often a process has arrived where it waits for the others, within a ``with`` block.

    Where nothing has moved for ``timeout`` seconds, the processes that others keep waiting end with exit
    code 1, and the first of them names those.

    Args:
        world: the processes.
        timeout: seconds.
    """

    def __init__(self, world: World, timeout: float) -> None:
        self._world, self._timeout = world, timeout
        self._interval = min(_LONGEST_INTERVAL, timeout / 4)
        self._left = threading.Event()
        # a connection of its own: the main thread may wait on the other one
        store: Any = torch.distributed.distributed_c10d._get_default_store()
        self._store = store.clone()
        self._thread = threading.Thread(target=self._watch, name="fastae-heartbeat", daemon=True)

    def __enter__(self) -> Self:
        self._store.set(self._key("process"), f"{self._world.rank} on {socket.gethostname()}, {os.getpid()}")
        self._publish(0)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._left.set()
        self._thread.join()

    def _key(self, name: str, rank: int | None = None) -> str:
        return f"fastae/{name}/{self._world.rank if rank is None else rank}"

    def _publish(self, arrivals: int) -> None:
        self._store.set(self._key("arrivals"), str(arrivals))

    def _watch(self) -> None:
        seen, since = 0, time.monotonic()
        with suppress(RuntimeError):  # the store is gone, and the run with it
            while not self._left.wait(self._interval):
                arrivals, now = self._world.arrived, time.monotonic()
                if arrivals != seen:
                    seen, since = arrivals, now
                    self._publish(arrivals)
                elif now - since >= self._timeout:
                    self._end(arrivals)

    def _end(self, arrivals: int) -> None:
        """End this process if another one has not come as far; the first that waits says so."""
        ranks = range(self._world.size)
        counts = [int(self._store.get(self._key("arrivals", rank))) for rank in ranks]
        late = [rank for rank in ranks if counts[rank] < arrivals]
        if not late:
            return
        if self._world.rank == min(set(ranks) - set(late)):
            names = [self._store.get(self._key("process", rank)).decode() for rank in late]
            which = "; ".join(f"process {name}" for name in names)
            sys.stderr.write(f"fastae: no answer for {self._timeout:g} s from {which}; the run ends\n")
            sys.stderr.flush()
        os._exit(1)
