"""A program that launches kernels on the stub driver, and prints what it saw: run by ``test_stub.py``.

It cannot be part of a test's process, where kernels are imported for the interpreter.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from fastae_kernels import operators as launchers
from fastae_kernels.plan import config
from fastae_kernels.plan.schedules import GemmConfig
from fastae_kernels.tools.aot import TARGETS
from fastae_kernels.tools.stub import stub_driver

import fastae
from fastae import functional, nn
from fastae.bench.groups import STEP
from fastae.bench.operators import OPERATORS, Call, Tensors, cost_of
from fastae.bench.problems import Problem, Shape
from fastae.train.graph import Capture
from fastae.train.step import TrainingStep
from tests.kernels.support import BY_TMA, EVERYTHING, OVERLAPPED

SHAPE = Shape(256, 784, 1000)
SMALL = {"gemm": BY_TMA}
SELECTING = {"gemm": config.configurations(TARGETS["cuda:90"], torch.bfloat16, operator="top_entries")[0]}


def step(function: Callable[..., tuple[torch.Tensor, ...]]) -> None:
    problem = Problem.make(SHAPE, torch.bfloat16)
    seed = torch.ones(())
    seen.kernels.clear()
    torch.autograd.grad(function(*STEP.inputs(problem))[:1], STEP.leaves(problem), seed)


def counted_bytes() -> int:
    """Of a step, by the cost model."""
    problem = Problem.make(SHAPE, torch.bfloat16)
    return sum(cost_of(o, problem).bytes for name, o in OPERATORS.items() if name != "weight_grad")


class Unrecorded(Capture):
    """Runs what would be recorded, as a stream that captures sees it."""

    def warm_up(self, run):
        return run()

    def record(self, run):
        raise AssertionError("nothing is recorded here")


def training_step(together: int = 0) -> None:
    """One on a batch, or several in a call on rows of data."""
    model = nn.Autoencoder(784, 1000, corruption=fastae.Masking(0.25), contractive=0.1)
    x = torch.rand(SHAPE.rows, SHAPE.features)
    own = TrainingStep(
        model,
        torch.optim.Adam(model.parameters(), fused=True, capturable=True),
        data=[x] if together else [],
        autocast=torch.bfloat16,
        graph=False,
    )
    own._capture_by(Unrecorded())
    index = torch.arange(SHAPE.rows).expand(together, -1)
    for _ in range(2):  # the first makes the optimizer's state and the sums, once
        seen.kernels.clear()
        own(index, rates=[0.1] * together) if together else own(x)


def operators_of_odd_sizes() -> None:
    tensors = Tensors.of(Problem.make(Shape(67, 131, 93), torch.bfloat16))
    seen.kernels.clear()
    for operator in OPERATORS.values():
        Call(operator, tensors).forward()


def everything() -> None:
    x, w, v = (torch.rand(*s).bfloat16().requires_grad_() for s in ((64, 96), (128, 96), (96, 128)))
    b, c = torch.zeros(128).bfloat16().requires_grad_(), torch.zeros(96).bfloat16().requires_grad_()
    functional.autoencoder_loss(x, w, b, v, c, **EVERYTHING).total.backward()


def segments() -> None:
    index, starts = torch.arange(512) % 16, torch.tensor([0, 300, 310, 512])
    values, table, other = torch.rand(512), torch.rand(16, 96).bfloat16(), torch.rand(3, 96).bfloat16()
    seen.kernels.clear()
    launchers.segment_sums(table, index, starts, values)
    launchers.segment_sums(table, index, starts, values, other, torch.arange(512))
    launchers.top_entries(other, table, None, 8)
    launchers.segment_loss(table, index, starts, values, other)
    launchers.batch_entries(other, table, None, 8)
    weight, moments = torch.rand(3, 96), torch.zeros(2, 3, 96)
    launchers.adam_rows(weight, *moments, torch.ones(2), (0.9, 0.99), 1e-8, (table, index, starts, values))


def selections() -> None:
    x, weight = torch.rand(256, 96).bfloat16(), torch.rand(1024, 96).bfloat16()
    launchers.top_entries(x, weight, None, 8)
    launchers.batch_entries(x, weight, None, 8)


CASES: dict[str, tuple[dict[str, Any], Callable[[], None]]] = {
    "step, fused": ({"strategy": "fused", **SMALL}, lambda: step(STEP.ours)),
    "step, overlapped": ({"strategy": "fused", "gemm": OVERLAPPED}, lambda: step(STEP.ours)),
    "step, split": ({"strategy": "split"}, lambda: step(STEP.ours)),
    "step, eager": ({}, lambda: step(STEP.eager)),
    "TrainingStep, fused": ({"strategy": "fused", **SMALL}, training_step),
    "TrainingStep, split": ({"strategy": "split"}, training_step),
    "TrainingStep of 4, fused": ({"strategy": "fused", **SMALL}, lambda: training_step(4)),
    "odd sizes, fused": ({"strategy": "fused", **SMALL}, operators_of_odd_sizes),
    "everything, fused": ({"strategy": "fused", **SMALL}, everything),
    "everything, split": ({"strategy": "split"}, everything),
    "segments": ({}, segments),
    "selections, overlapped": (SELECTING, selections),
    "selections, not in float32": ({"gemm": OVERLAPPED}, selections),
}


# --- what must be refused ---------------------------------------------------------------------------------


@triton.jit
def _copy_by_descriptor(source, out, N: tl.constexpr):
    described = tl.make_tensor_descriptor(source, [N, N], [N, 1], [N, N])
    tl.store(out + tl.arange(0, N)[:, None] * N + tl.arange(0, N)[None, :], described.load([0, 0]))


@triton.jit
def _store_zero(out):
    tl.store(out, 0.0)


def tensor_map(address: int = 1024, box: tuple[int, int] = (64, 64), row: int = 64, swizzle: int = 3) -> None:
    utils = triton.runtime.driver.active.utils
    bfloat16, bytes_of_it = 9, 2
    name = "fill_tma_descriptor"
    fill = getattr(utils, f"{name}_tiled", None) or getattr(utils, name)  # the latter in Triton 3.6
    fill(address, swizzle, bytes_of_it, bfloat16, box, [64, row], [row, 1], 0)


def without_memory() -> None:
    fastae.ops.random_signs(torch.empty(16, 16, device="meta"), torch.zeros(1, dtype=torch.int64), 0)


REFUSED: dict[str, Callable[[], Any]] = {
    "good map": tensor_map,
    "address": lambda: tensor_map(address=1032),
    "stride": lambda: tensor_map(row=68),
    "side": lambda: tensor_map(box=(512, 64)),
    "swizzle": lambda: tensor_map(box=(64, 128)),
    "scratch": lambda: _copy_by_descriptor[(1,)](torch.rand(16, 16), torch.empty(16, 16), 16),
    "no memory": without_memory,
    "grid": lambda: _store_zero[(1, 70_000)](torch.rand(1)),
    "shared memory": lambda: step_with(GemmConfig(128, 256, 64, 8, 5, tma=True)),
}


def step_with(gemm: GemmConfig) -> None:
    with config.using(strategy="fused", gemm=gemm):
        Call(OPERATORS["encode"], Tensors.of(Problem.make(Shape(128, 256, 256), torch.bfloat16))).forward()


def refusal(call: Callable[[], Any]) -> str | None:
    try:
        call()
    except Exception as error:
        return str(error)
    return None


report: dict[str, Any] = {"cases": {}, "refused": {}}
for name, (overrides, run) in CASES.items():
    with stub_driver() as seen, config.using(**overrides):
        counted = counted_bytes()
        run()
    moved = sum(launch.bytes for launch in seen.kernels)
    report["cases"][name] = {
        "kernels": seen.kernels, "tensor_maps": seen.tensor_maps, "moved": moved, "counted": counted
    }  # fmt: skip
for name, call in REFUSED.items():
    with stub_driver():
        report["refused"][name] = refusal(call)
json.dump(report, sys.stdout)
