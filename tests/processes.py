"""Processes that start at once, and groups of them that run many functions."""

from __future__ import annotations

import functools
import multiprocessing
import os
import socket
import sys
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import pytest
import torch

IMPORTED = (
    "pytest",
    "fastae.commands.train",
    "fastae.commands.tables",
    "torch._dynamo",
    "torch.distributed.checkpoint.hf_storage",
    "torch.distributed.fsdp",
    "torch.distributed.launcher.api",
    "torch.nn.parallel.distributed",
)


@functools.cache
def forks() -> Any:
    """A multiprocessing context that forks processes, each with one thread, from a server with all imports.

    Where the system cannot fork, processes are spawned.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(IMPORTED))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
        first = context.Process(target=time.monotonic)
        first.start()
        first.join()
    return context


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _serve(rank: int, size: int, port: int, orders: Connection) -> None:
    torch.set_num_threads(1)
    os.environ.update(LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=str(size))
    torch.distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=size
    )
    while (order := orders.recv()) is not None:
        function, args = order
        try:
            orders.send((True, function(*args)))
        except BaseException as error:
            elsewhere = getattr(error, "elsewhere", None)
            orders.send((False, (type(error).__name__, str(error), elsewhere, traceback.format_exc())))
    torch.distributed.destroy_process_group()


class Failed(Exception):
    """Errors of the processes: (type, message, whether another one reports it, traceback) of each."""


class Group:
    """``size`` processes in one gloo group, each with one thread."""

    def __init__(self, size: int) -> None:
        context, port = forks(), free_port()
        self._pipes, self.processes = [], []
        for rank in range(size):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(rank, size, port, theirs), daemon=True)
            process.start()
            self._pipes.append(ours)
            self.processes.append(process)

    def run(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        """What ``function(*args)`` returns in each process; ``Failed`` where one raises."""
        for pipe in self._pipes:
            pipe.send((function, args))
        answers = []
        for pipe in self._pipes:
            if not pipe.poll(100):
                raise TimeoutError("a process does not answer")
            answers.append(pipe.recv())
        if not all(fine for fine, _ in answers):
            raise Failed([None if fine else value for fine, value in answers])
        return [value for _, value in answers]

    def close(self) -> None:
        for pipe, process in zip(self._pipes, self.processes, strict=True):
            if process.is_alive():
                pipe.send(None)
        for process in self.processes:
            process.join(10)
            if process.is_alive():
                process.kill()
