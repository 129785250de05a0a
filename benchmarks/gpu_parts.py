"""The parts of ``gpu_check.py``: what a GPU is asked, each in a process of its own.

A part is a function of a :class:`Machine` that returns JSON and hands over what it has in between. Under the
stub driver (``dry``) the same calls are compiled and launched, and no time or error is ever a number.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import itertools
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
import triton
from fastae_kernels import launch
from fastae_kernels.launch import Target, compile_only
from fastae_kernels.plan import choices, config
from fastae_kernels.plan.schedules import GemmConfig, PassConfig
from fastae_kernels.tools import tune
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import gpu_sparse, gpu_training
from benchmarks.gpu_machine import Machine, Save, Work
from fastae.bench import runs
from fastae.bench.gate import TOLERANCES, error_of, largest_error
from fastae.bench.groups import STEP
from fastae.bench.operators import OPERATORS, Call, Tensors
from fastae.bench.problems import Problem, Shape
from fastae.bench.providers import FLOOR, Floor, make_provider
from fastae.bench.results import clocks, describe
from fastae.bench.suite import Suite

ROOT = Path(__file__).resolve().parent.parent
SHAPES = gpu_training.SHAPES
SMALL = (Shape(96, 192, 128), Shape(67, 131, 93))
SMALL_TILES = GemmConfig(64, 64, 32, 4, 3, subtiles=2, tma=True)
TABLE = ("encode", "decode_loss", "code_grad", "weight_grad dual")
_MORE: dict[str, Any] = {"tma": True, "group": 16}
EXPLORED = (
    GemmConfig(128, 256, 64, 8, 3, subtiles=8, light_subtiles=2, **_MORE),
    GemmConfig(128, 256, 64, 8, 4, subtiles=8, light_subtiles=2, persistent=True, **_MORE),
    GemmConfig(256, 128, 64, 8, 3, subtiles=4, light_subtiles=2, persistent=True, **_MORE),
    GemmConfig(128, 128, 64, 4, 3, subtiles=8, light_subtiles=4, programs=2, persistent=True, **_MORE),
    GemmConfig(128, 128, 128, 8, 3, subtiles=4, light_subtiles=2, **_MORE),
    GemmConfig(64, 128, 128, 4, 4, subtiles=4, light_subtiles=2, **_MORE),
    GemmConfig(64, 64, 128, 4, 4, subtiles=2, programs=2, **_MORE),
    GemmConfig(64, 32, 128, 4, 5, subtiles=1, programs=2, **_MORE),
)
"""Tiles for the table that are no defaults."""
PASSES = (
    PassConfig(16, 128, 4),
    PassConfig(32, 64, 4),
    PassConfig(32, 256, 8),
    PassConfig(64, 64, 4),
    PassConfig(64, 128, 8),
    PassConfig(128, 64, 8),
    PassConfig(128, 128, 8),
)


# --- stage 1 ----------------------------------------------------------------------------------------------


def machine(here: Machine, save: Save) -> dict[str, Any]:
    """Versions, the compiler's files, and what a large copy and a large product reach."""
    from triton.runtime.cache import triton_key

    library = Path(triton.__file__).parent / "_C" / "libtriton.so"
    found: dict[str, Any] = {
        "head": describe(here.device),
        "libtriton_sha256": hashlib.sha256(library.read_bytes()).hexdigest(),
        "triton_key": hashlib.sha256(triton_key().encode()).hexdigest(),
        "cache": os.environ.get("TRITON_CACHE_DIR", "by default"),
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


def smoke(here: Machine, save: Save) -> dict[str, Any]:
    """Errors of every operator, fused and split, of the sparse ones, against float64."""
    found: dict[str, Any] = {"errors": {}, "problems": {}}
    for dtype, shape in itertools.product(("bfloat16", "float32"), SMALL):
        tensors = Tensors.of(Problem.make(shape, getattr(torch, dtype), here.device))
        for strategy, (name, operator) in itertools.product(("fused", "split"), OPERATORS.items()):
            with config.using(strategy=strategy, gemm=SMALL_TILES):
                _check(here, found, f"{name} {strategy} {dtype} {shape}", dtype, Call(operator, tensors))
        sparse_calls = gpu_sparse.compared(tensors) if shape == SMALL[0] else {}
        for name, call in sparse_calls.items():
            _check(here, found, f"{name} {dtype} {shape}", dtype, call)
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
    cases = list(itertools.product(SHAPES, TABLE))
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
        for outcome in tune.tune(cases, here.device):
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


# --- stage 2 ----------------------------------------------------------------------------------------------

_KERNELS = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("tests/kernels/test_*.py"))
_LATER = ("configurations", "addresses")
_NOT_THERE = ("aot", "stub", "tables", "cost", "config")  # which need no GPU
TESTS = {
    "kernels": [f for f in _KERNELS if not f[:-3].endswith(_LATER + _NOT_THERE)],
    "training": ["tests/train/test_graph.py", "tests/train/test_step.py"],
    "configurations": [f for f in _KERNELS if f[:-3].endswith(_LATER)],
}


def run_tests(which: str, here: Machine, save: Save) -> dict[str, Any]:
    """Counts of tests, and the names of those that fail."""
    workers = max(1, (os.cpu_count() or 1) * 3 // 4)  # most of the time is compiling kernels
    spread = ["-n", str(workers)] if importlib.util.find_spec("xdist") else []
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}"]
        command += ["-m", "not slow", *([] if here.dry else spread), *TESTS[which]]
        limit = max(5.0, here.left - 8.0)
        code, output = call_for(limit, command + (["--collect-only"] if here.dry else []))
        if here.dry:
            problems = {} if code == 0 else {"collection": output[-500:]}
            return {"collected": output.strip().splitlines()[-1:], "problems": problems}
        if not report.exists():
            return {"problems": {which: f"no report, exit code {code}"}, "output": output[-2000:]}
        suite = ElementTree.parse(report).getroot().find("testsuite")
        assert suite is not None
        counts = Counter({k: int(suite.get(k, 0)) for k in ("tests", "failures", "errors", "skipped")})
        problems = {} if code is not None else {which: "not finished in time"}
        for case in suite.iter("testcase"):
            for failure in [*case.iter("failure"), *case.iter("error")]:
                name = f"{case.get('classname')}::{case.get('name')}"
                problems[name] = (failure.get("message") or "failed")[:300]
    return {**counts, "problems": problems}


def call_for(seconds: float, command: list[str]) -> tuple[int | None, str]:
    """(exit code, output) of a command; ``None`` where it took too long and was interrupted."""
    with (
        tempfile.TemporaryFile("w+") as said,
        subprocess.Popen(
            command, cwd=ROOT, start_new_session=True, stdout=said, stderr=subprocess.STDOUT
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
    import signal
    from contextlib import suppress

    for number, seconds in ((signal.SIGINT, 6.0), (signal.SIGKILL, 5.0)):
        with suppress(ProcessLookupError, subprocess.TimeoutExpired):
            os.killpg(process.pid, number)
            process.wait(seconds)


def suite(here: Machine, save: Save) -> dict[str, Any]:
    """``fastae bench`` of steps and operators: its own file of results is in the answer."""
    from fastae.commands import bench
    from fastae.console import Console

    if here.dry:
        made = Suite(here.device, clock=here.clock).cases(
            ("step", "operators"),
            SHAPES,
            ("bfloat16",),
            bench.training_run("digits", "quick"),
            compiled=False,
            all_compiled=False,
        )
        return {"cases": [case.key for case in made]}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "results.json"
        problems = {}
        try:
            measured = bench.Config(
                groups=("step", "operators"),
                shapes=SHAPES,
                dtype=("bfloat16",),
                device="cuda",
                compile=False,
                seconds=max(5.0, here.left - 12.0),
                out=str(out),
            )
            bench.run(measured, Console())
        except bench.MeasurementError as error:
            problems["suite"] = str(error)
        return {"results": json.loads(out.read_text()), "problems": problems}


# --- stage 3 ----------------------------------------------------------------------------------------------


def compilers(here: Machine, save: Save) -> dict[str, Any]:
    """torch.compile and its reduce-overhead mode beside a captured step, at two shapes."""
    names = ("eager", "fastae") if here.dry else ("fastae", "graph", "compile", "reduce-overhead")
    return _providers(here, save, (Shape(256, 784, 1000), Shape(8192, 4096, 8192)), names)


COMPILED = ("compile", "reduce-overhead", "fastae reduce-overhead")
"""Modes of torch.compile for a whole step, of a script's model and of fastae's."""
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


def digits(here: Machine, save: Save) -> dict[str, Any]:
    """A whole run on digits beside its bare products and a plain script."""
    from fastae.commands.bench import training_run

    run = training_run("digits", "quick")
    if here.dry:
        run = replace(run, dataset=runs.first_rows(run.dataset, 64), epochs=1)
        return {"losses": len(runs.by_engine(run, "float32", torch.device("cpu")))}
    found: dict[str, Any] = {}
    for name, provider in runs.providers_of(run, "bfloat16", here.device).items():
        provider()
        began = time.monotonic()
        losses = provider()
        torch.cuda.synchronize()
        found[name] = {"seconds": time.monotonic() - began, "losses": losses}
        save(found)
    return found


RATES = (1e-3, 3e-4)
"""Learning rates of the classifier, between which its error on rows held out decides."""


def classic_stack(folder: str, rate: float) -> Any:
    """The settings of 784-1000-1000-1000-10: pretrained with masking, then trained with dropout."""
    from fastae.train import Stage, TrainConfig

    return TrainConfig(
        sizes=(784, 1000, 1000, 1000),
        corruption=("masking:0.25",),
        classifier=True,
        pretrain=Stage(epochs=30, batch_size=256, schedule="CosineAnnealingLR"),
        finetune=Stage(epochs=0),
        supervised=Stage(epochs=100, batch_size=256, lr=rate, schedule="CosineAnnealingLR"),
        validation=1.0 / 6.0,
        precision="bfloat16",
        device="cuda",
        out=str(Path(folder) / f"run-{rate}"),
        tensorboard=False,
    )


def mnist(here: Machine, save: Save) -> dict[str, Any]:
    """The classic stack pretrained and trained on MNIST: seconds and errors, of each rate."""
    from fastae.train import load_dataset, train
    from fastae.train.evaluation import evaluate

    if here.data is None:
        return {"skipped": "no data was carried: --data FOLDER of MNIST's files"}
    dataset = load_dataset(str(here.data))
    if here.dry:
        return {"rows": len(dataset.train)}
    assert dataset.test is not None
    found: dict[str, Any] = {"runs": {}, "problems": {}}
    with tempfile.TemporaryDirectory() as folder:
        for rate in RATES:
            began = time.monotonic()
            result = train(classic_stack(folder, rate), dataset=dataset)
            seconds = time.monotonic() - began
            held_out = result.history[-1]["validation_error"]
            error = evaluate(result.stack, dataset.test, classifier=result.classifier)["classifier_error"]
            found["runs"][str(rate)] = {"seconds": seconds, "validation_error": held_out, "test_error": error}
            save(found)
    best = min(found["runs"].values(), key=lambda run: run["validation_error"])
    found |= {
        "seconds": sum(run["seconds"] for run in found["runs"].values()),
        "test_error": best["test_error"],
    }
    if best["test_error"] > 0.013 or found["seconds"] > 60.0:
        found["problems"]["mnist"] = f"{100 * best['test_error']:.2f} % in {found['seconds']:.0f} s"
    return found


# --- all of them ------------------------------------------------------------------------------------------


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
            "prebuild": Part(prebuild, 60.0, kernels=False),
            "smoke": Part(smoke, 60.0),
            "captured": Part(gpu_training.captured, 30.0),
            "tuned": Part(tuned, 80.0),
            "steps": Part(steps, 35.0),
            "steps apart": Part(steps_apart, 20.0),
            "kernels": Part(gpu_training.kernels, 30.0),
            "whole": Part(gpu_training.whole, 30.0),
            "updates": Part(gpu_training.updates, 25.0),
            "sparse": Part(gpu_sparse.sparse, 35.0),
            "table": Part(table, 80.0),
        },
    ),
    2: (
        180.0,
        {
            "test kernels": Part(functools.partial(run_tests, "kernels"), 110.0, kernels=False),
            "test training": Part(functools.partial(run_tests, "training"), 45.0, kernels=False),
            "test configurations": Part(functools.partial(run_tests, "configurations"), 60.0, kernels=False),
        },
    ),
    3: (
        230.0,
        {
            "compilers": Part(compilers, 60.0),
            "whole": Part(functools.partial(gpu_training.whole, compiled=COMPILED), 60.0),
            "mnist": Part(mnist, 70.0, kernels=False),
            "suite": Part(suite, 70.0, kernels=False),
            "profiler": Part(profiler, 60.0),
            "digits": Part(digits, 30.0, kernels=False),
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
