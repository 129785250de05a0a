"""Training steps in ``gpu_check.py``: captured beside plain ones, and updates by one kernel."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any
from unittest import mock

import torch
from fastae_kernels import operators
from torch import Tensor

import fastae
from benchmarks.gpu_machine import Machine, Save, Work
from fastae.bench.problems import CONTRACTIVE, MASKING, Shape
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
