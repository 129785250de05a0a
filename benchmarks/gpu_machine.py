"""The machine that the parts of ``gpu_check.py`` run on, and its clock."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from fastae_kernels.launch import Target, target_of
from fastae_kernels.tools.stub import DEVICES

from fastae.bench.measure import Clock, Task, summary

ROOT = Path(__file__).resolve().parent.parent

Save = Callable[[Any], None]


class _Dry(Clock):
    """Runs everything once, and has no times."""

    def __init__(self) -> None:
        super().__init__(torch.device("cpu"))

    def task(self, work: Any, mode: str) -> Task:
        run = getattr(work, mode)
        if mode == "backward":
            work.forward()
        run()
        return Task(run)

    def interleaved(self, tasks: dict[str, Task], seconds: float) -> dict[str, list[float]]:
        return {name: [] for name in tasks}


@dataclass(frozen=True)
class Machine:
    """Where a part runs, until when (by ``time.monotonic``), and data that was carried along."""

    dry: bool
    deadline: float
    data: Path | None = None

    @property
    def device(self) -> torch.device:
        return torch.device("cpu" if self.dry else "cuda")

    @property
    def target(self) -> Target:
        return DEVICES["h100"] if self.dry else target_of(self.device)

    @functools.cached_property
    def clock(self) -> Clock:
        return _Dry() if self.dry else Clock(self.device)

    @property
    def left(self) -> float:
        return self.deadline - time.monotonic()

    def measure(self, tasks: dict[str, Task], seconds: float) -> dict[str, dict[str, float] | None]:
        times = self.clock.interleaved(tasks, max(0.0, min(seconds, self.left)))
        return {name: summary(values) if values else None for name, values in times.items()}


class Work:
    """A function that is timed."""

    def __init__(self, function: Callable[[], object], *, capturable: bool = True) -> None:
        self.forward, self.capturable = function, capturable


def call_for(seconds: float, command: list[str]) -> tuple[int | None, str]:
    """(exit code, output) of a command; ``None`` where it took too long and was interrupted."""
    with (
        tempfile.TemporaryFile("w+") as said,
        subprocess.Popen(
            command,
            cwd=ROOT,
            start_new_session=True,
            stdout=said,
            stderr=subprocess.STDOUT,
        ) as process,
    ):
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            end(process)
            code = None
        said.seek(0)
        return code, said.read()


def end(process: subprocess.Popen[Any]) -> None:
    """Interrupt a process and all that it started, then end them."""
    for number, seconds in ((signal.SIGINT, 6.0), (signal.SIGKILL, 5.0)):
        with suppress(ProcessLookupError, subprocess.TimeoutExpired):
            os.killpg(process.pid, number)
            process.wait(seconds)
