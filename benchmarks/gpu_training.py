"""Training steps in ``gpu_check.py``: captured beside plain ones, updates by one kernel, kernel by kernel."""

from __future__ import annotations

import copy
import functools
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any
from unittest import mock

import torch
from fastae_kernels import operators
from torch import Tensor

import fastae
from benchmarks.gpu_machine import Machine, Save, Work
from fastae.bench.groups import STEP
from fastae.bench.problems import CONTRACTIVE, MASKING, Problem, Shape
from fastae.bench.providers import FLOOR, Floor, make_provider
from fastae.bench.runs import DenoisingAutoencoder
from fastae.train import adam
from fastae.train.step import TrainingStep, steps_per_call

SHAPES = (Shape(8192, 4096, 16384), Shape(8192, 784, 1000), Shape(1024, 784, 2000), Shape(256, 784, 1000))
SMALL = SHAPES[2:]
"""Of whole steps, whose products are compiled for each shape."""


def captured(here: Machine, save: Save, calls: int = 20) -> dict[str, Any]:
    """Captured training steps beside plain ones, on the same noise, one or four in a call."""
    found: dict[str, Any] = {"problems": {}}
    for together in (1, 4):
        ends = []
        for graph in (False, not here.dry):
            torch.manual_seed(0)
            step, index = _step(here, Shape(256, 784, 1000), together, graph)
            for _ in range(calls):
                step(index)
            ends.append([p.detach().clone() for p in step.optimizer.param_groups[0]["params"]])
            found[f"{together} captured"] = step.captured, step.reason
        if here.dry:
            continue
        apart = found[f"{together} apart"] = max(
            float((a - b).abs().max()) for a, b in zip(*ends, strict=True)
        )
        if apart or not step.captured:
            found["problems"][f"{together} in a call"] = f"off by {apart:.1e}"
    return found


def _step(here: Machine, shape: Shape, together: int, graph: bool) -> tuple[TrainingStep, Tensor]:
    """A step with Adam, and the indices for calls of it."""
    x = torch.rand(shape.rows, shape.features, device=here.device)
    model = fastae.nn.Autoencoder(
        shape.features, shape.units, corruption=MASKING, contractive=CONTRACTIVE, device=here.device
    )
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    step = TrainingStep(model, optimizer, data=[x], autocast=torch.bfloat16, graph=graph)
    return step, torch.arange(shape.rows, device=here.device).expand(together, -1)


def updates(here: Machine, save: Save) -> dict[str, Any]:
    """Adam and the cast of a weight by PyTorch and an operator, and by one kernel; whole steps of both."""
    found: dict[str, Any] = {"times": {}, "steps": {}, "errors": {}, "problems": {}}
    for number, shape in enumerate(SHAPES):
        share = here.left / (len(SHAPES) - number)
        work, error = _work(here, shape)
        if not here.dry:
            apart = found["errors"][str(shape)] = error()
            if not apart <= 1e-6:
                found["problems"][str(shape)] = f"off by {apart:.1e}"
        tasks = {name: here.clock.task(Work(run), "forward") for name, run in work.items()}
        found["times"][str(shape)] = here.measure(tasks, 0.3 * share)
        del work, error
        together, tasks = steps_per_call(shape.features * shape.units, shape.rows), {}
        for name in ("PyTorch", "one kernel") if shape in SMALL else ():
            by_torch = mock.patch.object(adam, "_by_formula", return_value=False)
            with by_torch if name == "PyTorch" else nullcontext():
                step, index = _step(here, shape, together, not here.dry)
                for _ in range(1 if here.dry else 5):  # captured after three
                    step(index)
            run = functools.partial(step, index)
            tasks[name] = here.clock.task(Work(run, capturable=False), "forward")
        if tasks:
            found["steps"][f"{together} of {shape}"] = here.measure(tasks, 0.4 * share)
        save(found)
    return found


def _work(here: Machine, shape: Shape) -> tuple[dict[str, Callable[[], object]], Callable[[], float]]:
    """A step and cast by PyTorch and by one kernel, and the largest difference after it, relative to lr."""
    H, D = shape.units, shape.features
    with torch.device(here.device):
        theirs = [torch.randn(H, D), torch.zeros(H), torch.zeros(D)]
        gradients = [torch.randn(p.shape) for p in theirs]
        narrow, norms = torch.empty(H, D, dtype=torch.bfloat16), torch.empty(H)
    lr = 1e-3
    optimizer = torch.optim.Adam(theirs, lr=lr, fused=True, capturable=True)
    for p, g in zip(theirs, gradients, strict=True):
        p.grad = g
    optimizer.step()
    jobs = []
    for p, g in zip(theirs, gradients, strict=True):
        state = copy.deepcopy(optimizer.state[p])
        jobs.append(operators.Updated(p.clone(), g, state["exp_avg"], state["exp_avg_sq"], state["step"], 1))
    jobs[0] = jobs[0]._replace(copy=narrow, sq_norms=norms)

    def by_torch() -> Any:
        optimizer.step()
        return operators.cast_weight(theirs[0], torch.bfloat16)

    def by_one() -> None:
        operators.adam(jobs, lr, (0.9, 0.999), 1e-8, 0.0, False)

    def error() -> float:
        cast = by_torch()
        by_one()
        apart = [float((p - job.parameter).abs().max()) for p, job in zip(theirs, jobs, strict=True)]
        apart.append(float((norms / cast[1] - 1.0).abs().max()) * 1e-3)  # of copies that may round otherwise
        return max(apart)

    return {"PyTorch": by_torch, "one kernel": by_one}, error


# --- whole steps, from Python -----------------------------------------------------------------------------


def whole(here: Machine, save: Save, compiled: tuple[str, ...] = ()) -> dict[str, Any]:
    """Whole steps, update included, called from Python: seconds of one, and peak bytes beyond the state.

    ``eager`` is a script's step, :class:`fastae.bench.runs.DenoisingAutoencoder` with a fused Adam, on rows
    that are on the device, and ``fastae`` the same with fastae's module. ``compiled`` are modes of
    ``torch.compile`` for the models, at the smallest shape alone, since compiling takes a while. The floor
    is a replay.
    """
    found: dict[str, Any] = {"seconds": {}, "bytes": {}, "problems": {}}
    for number, shape in enumerate(SHAPES):
        share = here.left / (len(SHAPES) - number)
        seconds, peaks = (
            found["seconds"].setdefault(str(shape), {}),
            found["bytes"].setdefault(str(shape), {}),
        )
        floor = {
            FLOOR: here.clock.task(Floor(STEP, Problem.make(shape, torch.bfloat16, here.device)), "full")
        }
        seconds[FLOOR] = here.measure(floor, 0.1 * share)[FLOOR]
        for name in ("TrainingStep", "fastae", "eager", *(compiled if shape == SHAPES[-1] else ())):
            if here.left < 2.0:
                found["problems"][f"{name} {shape}"] = "no time was left"
                continue
            try:
                run, steps = _whole(here, shape, name)
                seconds[name] = _per_step(here, run, steps, 0.2 * share)
                if name == "TrainingStep":
                    run, _ = _whole(here, shape, name, graph=False)
                    run()
                peaks[name] = _peak(here, run)
            except Exception as error:
                found["problems"][f"{name} {shape}"] = f"{type(error).__name__}: {error}"[:300]
        save(found)
    return found


def _whole(here: Machine, shape: Shape, name: str, graph: bool = True) -> tuple[Callable[[], object], int]:
    """(a call, how many steps it takes)."""
    if name == "TrainingStep":
        together = steps_per_call(shape.features * shape.units, shape.rows) if graph else 1
        step, index = _step(here, shape, together, graph and not here.dry)
        return functools.partial(step, index), together
    x = torch.rand(shape.rows, shape.features, device=here.device)
    model: Any = DenoisingAutoencoder(shape.features, shape.units)
    if name.startswith("fastae"):
        model = fastae.nn.Autoencoder(
            shape.features, shape.units, corruption=MASKING, contractive=CONTRACTIVE
        )
    model.to(here.device)
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    mode = name.removeprefix("fastae").strip()
    if mode not in ("", "eager") and not here.dry:
        torch._dynamo.reset()
        model = torch.compile(model, mode=None if mode == "compile" else mode, dynamic=False)

    def run() -> None:
        with torch.autocast(here.device.type, torch.bfloat16):
            loss = model(x)
        optimizer.zero_grad()
        (loss.total if name.startswith("fastae") else loss).backward()
        optimizer.step()

    return run, 1


def _per_step(here: Machine, run: Callable[[], object], steps: int, seconds: float) -> float | None:
    """Seconds per step of calls one after another: the least mean of three rounds."""
    for _ in range(1 if here.dry else 5):
        run()
    if here.dry:
        return None
    rounds = max(3, min(200, round(0.3 * seconds / here.clock.called(run, 3))))
    return min(here.clock.called(run, rounds) for _ in range(3)) / steps


def _peak(here: Machine, run: Callable[[], object]) -> int | None:
    if here.dry:
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def kernels(here: Machine, save: Save) -> dict[str, Any]:
    """The kernels of a replay in order, by PyTorch's profiler: name, start and microseconds."""
    found: dict[str, Any] = {"kernels": {}, "problems": {}}
    for shape in SHAPES:
        problem = Problem.make(shape, torch.bfloat16, here.device)
        work: dict[str, Any] = {FLOOR: Floor(STEP, problem)}
        work |= {name: make_provider(name, STEP, problem) for name in ("fused", "split", "eager")}
        tasks = {name: here.clock.task(provider, "full").run for name, provider in work.items()}
        if shape.rows * shape.units < 1 << 24:
            together = steps_per_call(shape.features * shape.units, shape.rows)
            step, index = _step(here, shape, together, not here.dry)
            for _ in range(1 if here.dry else 5):
                step(index)
            tasks[f"TrainingStep, {together} steps"] = functools.partial(step, index)
        for name, run in tasks.items():
            try:
                found["kernels"][f"{name} {shape}"] = None if here.dry else _profiled(run)
            except Exception as error:
                found["problems"][f"{name} {shape}"] = f"{type(error).__name__}: {error}"[:300]
        save(found)
    return found


def _profiled(run: Callable[[], object]) -> list[tuple[str, float, float]]:
    """(name, start, duration) of each kernel of the last of three runs, in microseconds."""
    from torch.autograd import DeviceType  # pyright: ignore[reportPrivateImportUsage]
    from torch.profiler import ProfilerActivity, profile

    run()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        for _ in range(3):
            run()
            torch.cuda.synchronize()
            time.sleep(2e-3)
    events = [e for e in seen.events() or () if e.device_type == DeviceType.CUDA]
    events = sorted(events, key=lambda e: e.time_range.start)
    last = events[-(len(events) // 3) :]
    first = last[0].time_range.start
    return [
        (e.name[:90], round(e.time_range.start - first, 2), round(e.time_range.elapsed_us(), 2)) for e in last
    ]
