"""The parts of ``gpu_check.py``: what a GPU is asked, each in a process of its own.

A part is a function of a :class:`Machine` that returns JSON and hands over what it has in between. Under the
stub driver (``dry``) the same calls are compiled and launched, and no time or error is ever a number.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
import triton
from fastae_kernels import launch
from fastae_kernels.plan import config
from fastae_kernels.plan.schedules import GemmConfig

from benchmarks import gpu_products, gpu_runs, gpu_sparse, gpu_tests, gpu_training
from benchmarks.gpu_machine import Machine, Save, Work
from benchmarks.gpu_training import SHAPES
from fastae.bench.gate import TOLERANCES, error_of
from fastae.bench.groups import STEP
from fastae.bench.operators import OPERATORS, Call, Tensors
from fastae.bench.problems import Problem, Shape
from fastae.bench.providers import FLOOR, Floor, make_provider
from fastae.bench.results import clocks, describe
from fastae.bench.suite import Suite

SMALL = (Shape(96, 192, 128), Shape(67, 131, 93), Shape(520, 328, 776))
MANY = Shape(2048, 128, 8192)
"""Of which every program has several tiles."""
SMALL_TILES = GemmConfig(64, 64, 32, 4, 3, subtiles=2, tma=True)
WAYS: dict[str, dict[str, Any]] = {
    "fused": {"strategy": "fused", "gemm": SMALL_TILES},
    "split": {"strategy": "split"},
    "overlapped": {
        "strategy": "fused",
        "gemm": next(g for g in config.GEMM_CONFIGS["sm90"][2] if g.epilogue_warps),
    },
}
"""Of a product with its epilogue."""


def machine(here: Machine, save: Save) -> dict[str, Any]:
    """Versions, the compiler's files, and what a large copy and a large product reach."""
    from triton.runtime.cache import triton_key

    library = Path(triton.__file__).parent / "_C" / "libtriton.so"
    found: dict[str, Any] = {
        "head": describe(here.device),
        "libtriton_sha256": hashlib.sha256(library.read_bytes()).hexdigest(),
        "triton_key": hashlib.sha256(triton_key().encode()).hexdigest(),
        "clocks": {} if here.dry else clocks("cuda"),
    }
    save(found)
    one = torch.zeros(1, device=here.device)

    def additions(number: int) -> None:
        for _ in range(number):
            one.add_(1.0)

    replays = {f"{n} kernels": Work(functools.partial(additions, n)) for n in (1, 11)}
    tasks = {name: here.clock.task(work, "forward") for name, work in replays.items()}
    found["replays"] = here.measure(tasks, 0.5)
    return found | {"peaks": None if here.dry else Suite(here.device).machine_peaks("bfloat16")}


def smoke(here: Machine, save: Save) -> dict[str, Any]:
    """Errors of every operator, in each way, and of the sparse ones, against float64."""
    found: dict[str, Any] = {"errors": {}, "problems": {}}
    for dtype, shape in itertools.product(("bfloat16", "float16", "float32"), SMALL):
        tensors = Tensors.of(Problem.make(shape, getattr(torch, dtype), here.device))
        for way, (name, operator) in itertools.product(WAYS, OPERATORS.items()):
            if way == "overlapped" and dtype != "bfloat16":
                continue
            with config.using(**WAYS[way]):
                _check(here, found, f"{name} {way} {dtype} {shape}", dtype, Call(operator, tensors))
        sparse_calls = gpu_sparse.compared(tensors) if shape == SMALL[0] else {}
        for name, call in sparse_calls.items():
            _check(here, found, f"{name} {dtype} {shape}", dtype, call)
        save(found)
    for dtype in ("bfloat16", "float16"):
        tensors = Tensors.of(Problem.make(MANY, getattr(torch, dtype), here.device))
        for gemm in config.configurations(here.target, getattr(torch, dtype), operator="top_entries")[:2]:
            with config.using(gemm=gemm):
                for name, call in gpu_sparse.compared(tensors).items():
                    if name in ("top_entries", "batch_entries", "entries_above"):
                        _check(here, found, f"{name} {gemm} {dtype} {MANY}", dtype, call)
        save(found)
    return found


def _check(here: Machine, found: dict[str, Any], name: str, dtype: str, call: Any) -> None:
    try:
        if here.dry:
            call.forward()
            found["errors"][name] = None
            return
        error = found["errors"][name] = call.error()
        if not error <= TOLERANCES[dtype]:
            found["problems"][name] = f"off by {error:.1e}"
    except Exception as error:  # the others still count
        found["problems"][name] = f"{type(error).__name__}: {error}"[:300]


def steps(here: Machine, save: Save) -> dict[str, Any]:
    """A step over its bare products at four shapes: as planned, all fused, all split, as one graph, eager."""
    return _providers(here, save, SHAPES, ("fastae", "fused", "split", "graph", "eager"))


def steps_apart(here: Machine, save: Save) -> dict[str, Any]:
    """The same where no kernel starts before the one before it has ended."""
    from triton.backends.nvidia.driver import CudaLauncher

    made = CudaLauncher.__init__

    def apart(self: Any, *args: Any) -> None:
        made(self, *args)
        self.launch_pdl = False

    with mock.patch.object(CudaLauncher, "__init__", apart):
        return _providers(here, save, SHAPES, ("fastae", "split"))


def _providers(
    here: Machine, save: Save, shapes: tuple[Shape, ...], names: tuple[str, ...]
) -> dict[str, Any]:
    found: dict[str, Any] = {"times": {}, "called": {}, "errors": {}, "problems": {}, "left_out": []}
    for number, shape in enumerate(shapes):
        share = here.left / (len(shapes) - number)
        problem = Problem.make(shape, torch.bfloat16, here.device)
        ready: dict[str, Any] = {FLOOR: Floor(STEP, problem)}
        tasks = {FLOOR: here.clock.task(ready[FLOOR], "full")}
        for name in names:
            where = f"{name} {shape}"
            if here.left < 2.0:
                found["left_out"].append(where)
                continue
            try:
                own = "fastae" if here.dry and name == "graph" else name
                provider = make_provider(own, STEP, problem)
                if not here.dry:
                    error = found["errors"][where] = error_of(provider, STEP, problem)
                    if not error <= TOLERANCES["bfloat16"]:
                        found["problems"][where] = f"off by {error:.1e}"
                        continue
                tasks[name], ready[name] = here.clock.task(provider, "full"), provider
            except Exception as error:
                found["problems"][where] = f"{type(error).__name__}: {error}"[:300]
        found["times"][str(shape)] = times = here.measure(tasks, 0.5 * share)
        if not here.dry:
            floor = times[FLOOR]["median"]  # pyright: ignore[reportOptionalSubscript]
            found.setdefault("over_floor", {})[str(shape)] = {
                name: round(value["median"] / floor, 3) for name, value in times.items() if value
            }
            found["called"][str(shape)] = {name: here.clock.called(p.full) for name, p in ready.items()}
        save(found)
    return found


COMPILED = ("compile", "reduce-overhead", "fastae reduce-overhead")
"""Modes of torch.compile for a whole step, of a script's model and of fastae's."""


def compilers(here: Machine, save: Save) -> dict[str, Any]:
    """torch.compile and its reduce-overhead mode beside a captured step, at two shapes."""
    names = ("eager", "fastae") if here.dry else ("fastae", "graph", "compile", "reduce-overhead")
    return _providers(here, save, (Shape(256, 784, 1000), Shape(8192, 4096, 8192)), names)


class Part(NamedTuple):
    """What to run, and its limit in seconds; ``kernels``: whether a dry run needs the stub driver."""

    run: Callable[[Machine, Save], dict[str, Any]]
    seconds: float
    kernels: bool = True


STAGES: dict[int, tuple[float, dict[str, Part]]] = {
    1: (
        300.0,
        {
            "machine": Part(machine, 30.0),
            "prebuild": Part(gpu_products.prebuild, 60.0, kernels=False),
            "smoke": Part(smoke, 60.0),
            "captured": Part(gpu_training.captured, 30.0),
            "tuned": Part(gpu_products.tuned, 80.0),
            "steps": Part(steps, 35.0),
            "steps apart": Part(steps_apart, 20.0),
            "kernels": Part(gpu_training.kernels, 30.0),
            "whole": Part(gpu_training.whole, 30.0),
            "updates": Part(gpu_training.updates, 25.0),
            "sparse": Part(gpu_sparse.sparse, 35.0),
            "table": Part(gpu_products.table, 80.0),
        },
    ),
    2: (
        180.0,
        {
            "test kernels": Part(functools.partial(gpu_tests.run_tests, "kernels"), 110.0, kernels=False),
            "test training": Part(functools.partial(gpu_tests.run_tests, "training"), 45.0, kernels=False),
            "test configurations": Part(
                functools.partial(gpu_tests.run_tests, "configurations"), 60.0, kernels=False
            ),
        },
    ),
    3: (
        230.0,
        {
            "compilers": Part(compilers, 60.0),
            "whole": Part(functools.partial(gpu_training.whole, compiled=COMPILED), 60.0),
            "mnist": Part(gpu_runs.mnist, 70.0, kernels=False),
            "suite": Part(gpu_runs.suite, 70.0, kernels=False),
            "profiler": Part(gpu_products.profiler, 60.0),
            "digits": Part(gpu_runs.digits, 30.0, kernels=False),
        },
    ),
}


@contextmanager
def under(dry: bool, part: Part) -> Iterator[None]:
    """The stub driver around a dry part's kernels."""
    from fastae_kernels.tools.stub import stub_driver

    if dry and part.kernels:
        os.environ["FASTAE_BACKEND"] = "triton"
        with stub_driver(compute=False):
            yield
    else:
        yield


assert launch.INTERPRETED is False, "TRITON_INTERPRET is set"
