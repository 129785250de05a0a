"""Tiles of products and passes in ``gpu_check.py``: every one's time, the tuned ones, counters of some."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any
from unittest import mock

import torch
from fastae_kernels.launch import Target, compile_only
from fastae_kernels.plan import choices, config
from fastae_kernels.plan.schedules import GemmConfig, PassConfig
from fastae_kernels.tools import tune
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.gpu_machine import ROOT, Machine, Save, Work, call_for
from benchmarks.gpu_training import SHAPES
from fastae.bench.gate import TOLERANCES, largest_error
from fastae.bench.operators import OPERATORS, Call, Tensors
from fastae.bench.problems import Problem, Shape

TABLE = ("encode", "decode_loss", "code_grad", "weight_grad dual")
_MORE: dict[str, Any] = {"tma": True, "group": 16}
EXPLORED = (
    GemmConfig(128, 256, 64, 8, 3, subtiles=8, light_subtiles=2, **_MORE),
    GemmConfig(128, 256, 64, 8, 4, subtiles=8, light_subtiles=2, persistent=True, **_MORE),
    GemmConfig(256, 128, 64, 8, 3, subtiles=4, light_subtiles=2, persistent=True, **_MORE),
    GemmConfig(128, 128, 128, 8, 3, subtiles=4, light_subtiles=2, **_MORE),
    GemmConfig(64, 128, 128, 4, 4, subtiles=4, light_subtiles=2, **_MORE),
    GemmConfig(64, 64, 128, 4, 4, subtiles=2, programs=2, **_MORE),
    GemmConfig(64, 32, 128, 4, 5, subtiles=1, programs=2, **_MORE),
)
"""Tiles for the table that are no defaults."""
PASSES = (*tune._PASSES, PassConfig(32, 256, 8), PassConfig(128, 128, 8))


def tiles(name: str, target: Target) -> tuple[GemmConfig, ...]:
    light = name.startswith("weight_grad")
    more = (replace(g, subtiles=g.light_subtiles or g.subtiles) if light else g for g in EXPLORED)
    return *config.configurations(target, torch.bfloat16, operator=name), *more


def meta_tensors(shape: Shape) -> Tensors:
    """Arguments without data."""
    m, d, h = shape
    sizes = {
        "x": (m, d),
        "weight": (h, d),
        "bias": (h,),
        "decoder_bias": (d,),
        "code": (m, h),
        "dz": (m, h),
        "grad": (m, d),
    }
    sums = {"sq_norms": (h,), "u": (h,), "scale": (), "penalty_scale": ()}
    with torch.device("meta"):
        return Tensors(
            **{name: torch.empty(size, dtype=torch.bfloat16) for name, size in sizes.items()},
            **{name: torch.empty(size) for name, size in sums.items()},
            seed=torch.empty(1, dtype=torch.int64),
        )


def _compile(task: tuple[Target, str, Shape, GemmConfig | None]) -> int:
    target, name, shape, gemm = task
    strategy = config.using(strategy="split" if gemm is None else "fused", gemm=gemm)
    with (
        strategy,
        compile_only(target) as made,
        _NoProducts(),
    ):  # which looks into operators, as no tensor does
        Call(OPERATORS[name], meta_tensors(shape)).forward()
    return len(made)


def prebuild(here: Machine, save: Save) -> dict[str, Any]:
    """Compile what the table launches, on all cores; nothing where the cache was carried along."""
    if here.dry:
        return {"note": "under the stub driver each part compiles for itself"}
    own = {shape: [None, *tiles(name, here.target)] for shape in SHAPES for name in TABLE}
    tasks = [(here.target, name, shape, gemm) for shape in SHAPES for name in TABLE for gemm in own[shape]]
    began, count = time.monotonic(), 0
    with multiprocessing.get_context("spawn").Pool(os.cpu_count()) as pool:
        for made in pool.imap_unordered(_compile, tasks):
            count += made
            save({"kernels": count, "seconds": time.monotonic() - began})
    return {"kernels": count, "seconds": time.monotonic() - began}


class _NoProducts(TorchDispatchMode):
    """Leaves out the library's products, so that the pass after one is alone."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "fastae":
            with self:
                return func._op_dk(torch._C.DispatchKey.CompositeExplicitAutograd, *args, **kwargs)
        if func is torch.ops.aten.mm.out:
            return kwargs["out"]
        return args[0] if func is torch.ops.aten.addmm_.default else func(*args, **kwargs)


def _bare_products(name: str, t: Tensors) -> Callable[[], None]:
    pairs = {
        "encode": [(t.x, t.weight.t())],
        "decode_loss": [(t.code, t.weight)],
        "code_grad": [(t.grad, t.weight.t())],
        "weight_grad dual": [(t.dz.t(), t.x), (t.code.t(), t.grad)],
    }

    def run() -> None:
        for a, b in pairs[name]:
            torch.mm(a, b)

    return run


def table(here: Machine, save: Save) -> dict[str, Any]:
    """Per shape and operator: the library's products, split, its pass alone, fused with each tile.

    Replays of graphs one after another with an empty second-level cache: medians and quartiles.
    """
    found: dict[str, Any] = {"times": {}, "errors": {}, "problems": {}, "left_out": []}
    cases = list(itertools.product(reversed(SHAPES), TABLE))  # small ones first, which take less
    for number, (shape, name) in enumerate(cases):
        where, share = f"{name} {shape}", here.left / (len(cases) - number)
        if here.left < 2.0:
            found["left_out"].append(where)
            continue
        tensors = Tensors.of(Problem.make(shape, torch.bfloat16, here.device))
        call, exact = Call(OPERATORS[name], tensors), None
        if not here.dry:
            exact = OPERATORS[name].exact(tensors.wide())
        tasks = {"products": here.clock.task(Work(_bare_products(name, tensors)), "forward")}
        planned: dict[str, dict[str, Any]] = {"split": {"strategy": "split"}, "pass": {"strategy": "split"}}
        planned |= {f"pass {p}": {"strategy": "split", "elementwise": p} for p in PASSES}
        planned |= {str(g): {"strategy": "fused", "gemm": g} for g in tiles(name, here.target)}
        for variant, overrides in planned.items():
            try:
                with (
                    config.using(**overrides),
                    _NoProducts() if variant.startswith("pass") else nullcontext(),
                ):
                    if exact is not None and not variant.startswith("pass"):
                        results = call.forward()
                        results = (results,) if isinstance(results, Tensor) else results
                        kept = [r for r in results if r.numel()]
                        error = found["errors"][f"{where} {variant}"] = largest_error(
                            zip(kept, exact, strict=True)
                        )
                        if not error <= TOLERANCES["bfloat16"]:
                            found["problems"][f"{where} {variant}"] = f"off by {error:.1e}"
                            continue
                    tasks[variant] = here.clock.task(call, "forward")
            except Exception as error:
                found["problems"][f"{where} {variant}"] = f"{type(error).__name__}: {error}"[:300]
        found["times"][where] = here.measure(tasks, 0.6 * share)
        save(found)
    return found


TUNED = ("encode", "decode_loss", "code_grad", "weight_grad dual", "corrupt")
"""Operators of a step with tied weights."""


def tuned(here: Machine, save: Save) -> dict[str, Any]:
    """``fastae tune`` of a step's operators at four shapes, among the defaults alone: their plans and times.

    The table lies where ``FASTAE_CACHE`` says, for the parts after this one, and is in the answer.
    """
    cases = [tune.Case(name, *shape, "bfloat16", tied=True) for shape in SHAPES for name in TUNED]
    found: dict[str, Any] = {"chosen": {}, "dropped": {}, "problems": {}}
    if here.dry:
        for case in cases:
            runs = tune._variants(case, here.device)(torch.bfloat16)
            for plan in tune.candidates(case.key(here.target), torch.bfloat16, here.target):
                for run in runs:
                    tune._run(plan, run)
        return found
    with mock.patch.object(tune, "_neighbours", return_value=[]):  # which would be compiled here
        for outcome in tune.tune(cases, here.device, again=True):  # what ships, too
            where = f"{outcome.case.operator} {Shape(outcome.case.M, outcome.case.D, outcome.case.H)}"
            found["chosen"][where] = {
                "plan": str(outcome.chosen),
                "default": str(outcome.default),
                "seconds": outcome.seconds,
                "default_seconds": outcome.default_seconds,
            }
            if outcome.dropped:
                found["dropped"][where] = [f"{plan}: {why}" for plan, why in outcome.dropped]
            table = choices.paths(here.target.device)["cache"]
            found["table"] = json.loads(table.read_text()) if table.exists() else None
            save(found)
            if here.left < 2.0:
                found["problems"]["time"] = f"ended after {where}"
                break
    return found


PROFILED = {"encode": 0, "decode_loss": 0, "decode_loss split": None}
"""Launches for the profiler: an operator with its first tile, or its pass."""


def launch_once(name: str, dry: bool) -> None:
    """The launch that is profiled, after one that warms up."""
    here = Machine(dry, time.monotonic() + 60.0)
    operator, _, split = name.partition(" ")
    gemm = None if split else tiles(operator, here.target)[0]
    call = Call(OPERATORS[operator], Tensors.of(Problem.make(SHAPES[0], torch.bfloat16, here.device)))
    with config.using(strategy="split" if split else "fused", gemm=gemm):
        call.forward()
        call.forward()
    if not dry:
        torch.cuda.synchronize()


def profiler(here: Machine, save: Save) -> dict[str, Any]:
    """Nsight Compute's basic counters of three launches; the card's clocks stay as they are."""
    tool, found, problems = shutil.which("ncu"), {}, {}
    for name in PROFILED:
        kernel = "elementwise" if name.endswith("split") else "gemm"
        own = [sys.executable, str(ROOT / "benchmarks" / "gpu_check.py"), "--launch", name]
        if here.dry:
            launch_once(name, True)
            found[name] = None
            continue
        if tool is None:
            return {"skipped": "ncu is not installed"}
        options = ["--clock-control", "none", "--set", "basic", "-k", f"regex:{kernel}", "-s", "1", "-c", "1"]
        code, output = call_for(max(5.0, min(40.0, here.left - 2.0)), [tool, *options, *own])
        found[name] = output[-6000:]
        if code != 0:
            problems[name] = f"exit code {code}"
        save({"output": found, "problems": problems})
    return {"output": found, "problems": problems}
