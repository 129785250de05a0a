"""The clock and the scale: times of interleaved providers, peak memory of one."""

from __future__ import annotations

import gc
import multiprocessing
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from ..train.graph import CudaCapture
from .problems import Problem, Shape
from .providers import Unavailable, make_provider

Action = Callable[[], object]
Now = Callable[[], float]

LEAST_ROUNDS, MOST_ROUNDS = 5, 1000
_CACHE_BYTES = 256 << 20  # more than any second-level cache holds


class Work(Protocol):
    """Work that can be timed: a provider, the floor, an operator; one method per mode."""

    @property
    def capturable(self) -> bool:
        """True if a CUDA graph can capture the work."""
        ...

    def forward(self) -> object: ...


@dataclass(frozen=True)
class Task:
    """A timed call, and an untimed one that has to precede it each time."""

    run: Action
    before: Action | None = None


class Clock:
    """Times tasks on one device, in seconds.

    On a CPU by the process's clock. On a GPU by events around the replay of a CUDA graph, which excludes
    launching, after a write that empties the second-level cache.
    """

    def __init__(self, device: torch.device, now: Now = time.perf_counter) -> None:
        self.device, self.now = device, now
        self.on_gpu = device.type == "cuda"
        self._flush = torch.empty(_CACHE_BYTES if self.on_gpu else 0, dtype=torch.uint8, device=device)

    def task(self, work: Work, mode: str) -> Task:
        """One mode of some work, warmed up and, where it can be, captured."""
        run = getattr(work, mode)
        before = work.forward if mode == "backward" else None
        capture = CudaCapture(self.device) if self.on_gpu and work.capturable else None
        for action in (before, run, before, run):
            if action is not None:  # where it will be captured: autograd remembers the stream
                action() if capture is None else capture.warm_up(action)
        if capture is None:
            return Task(run, before)
        # both graphs share their memory
        first = None if before is None else capture.record(before)[0]
        return Task(capture.record(run)[0], first)

    def once(self, task: Task) -> float:
        """Seconds of one run."""
        if task.before is not None:
            task.before()
        if not self.on_gpu:
            start = self.now()
            task.run()
            return self.now() - start
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        self._flush.zero_()
        start.record()
        task.run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) * 1e-3

    def interleaved(self, tasks: dict[str, Task], seconds: float) -> dict[str, list[float]]:
        """Times of every task: rounds of all of them, in a new order each, until ``seconds`` are over."""
        times: dict[str, list[float]] = {name: [] for name in tasks}
        order, shuffle = list(tasks), random.Random(0).shuffle
        gc.disable()
        try:
            began = self.now()
            for round_ in range(MOST_ROUNDS):
                if round_ >= LEAST_ROUNDS and self.now() - began >= seconds:
                    break
                shuffle(order)
                for name in order:
                    times[name].append(self.once(tasks[name]))
        finally:
            gc.enable()
        return times

    def wall(self, run: Action) -> float:
        """Seconds of one run, launches and host included."""
        start = self.now()
        run()
        if self.on_gpu:
            torch.cuda.synchronize(self.device)
        return self.now() - start

    def called(self, run: Action, rounds: int = 20) -> float:
        """Seconds per call from Python, over many calls in a row, with the time of launching."""
        run()
        torch.cuda.synchronize(self.device)
        start = self.now()
        for _ in range(rounds):
            run()
        torch.cuda.synchronize(self.device)
        return (self.now() - start) / rounds


def summary(times: list[float], scale: float = 1.0) -> dict[str, float]:
    """Median, quartiles and the number of rounds."""
    low, middle, high = statistics.quantiles(times, n=4) if len(times) > 1 else times * 3
    return {"median": scale * middle, "low": scale * low, "high": scale * high, "rounds": len(times)}


# --- peak memory ----------------------------------------------------------------------------------------


def peak_bytes(name: str, group: str, shape: Shape, dtype: str, device: torch.device) -> int:
    """Bytes that a provider's last mode needs on top of its inputs.

    On a GPU by the allocator's statistics. On a CPU as the growth of the resident set's high-water mark over
    three runs, in a separate process, forked from one that has only imported what is needed.

    Raises:
        Unavailable: the system does not report it.
    """
    if device.type == "cuda":
        run = _prepared(name, group, shape, dtype, device)
        run()
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before
    if not Path("/proc/self/clear_refs").exists():
        raise Unavailable("peak memory of a CPU is read from Linux's /proc")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    receiver, sender = context.Pipe(duplex=False)
    arguments = (sender, name, group, shape, dtype, torch.get_num_threads())
    process = context.Process(target=_send_resident_growth, args=arguments)
    process.start()
    sender.close()
    try:
        answer = receiver.recv()
    except EOFError:
        answer = "its process ended without a result"
    process.join()
    if isinstance(answer, str):
        raise Unavailable(f"peak memory: {answer}")
    return answer


def _send_resident_growth(sender: Any, name: str, group: str, shape: Shape, dtype: str, threads: int) -> None:
    try:
        torch.set_num_threads(threads)
        small = Shape(*(min(8, size) for size in shape))
        run = _prepared(name, group, shape, dtype, torch.device("cpu"))
        # what the first call loads is not the work's; a compiled function has one shape alone
        (run if "compile" in name else _prepared(name, group, small, dtype, torch.device("cpu")))()
        Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
        before = _resident_bytes("VmRSS")
        for _ in range(3):
            run()
        sender.send(max(0, _resident_bytes("VmHWM") - before))
    except Exception as error:  # the parent says what it was
        sender.send(f"{type(error).__name__}: {error}"[:300])


def _prepared(name: str, group: str, shape: Shape, dtype: str, device: torch.device) -> Action:
    from .groups import GROUPS

    problem = Problem.make(shape, getattr(torch, dtype), device)
    provider = make_provider(name, GROUPS[group], problem)
    return getattr(provider, GROUPS[group].modes[-1])


def _resident_bytes(field: str) -> int:
    """A field of this process's status."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(next(line for line in status.splitlines() if line.startswith(field)).split()[1])
