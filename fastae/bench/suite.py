"""The suite: which cases there are, the gate before every ratio, and a budget of time for all of them."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch

from ..errors import first_line
from . import operators, runs
from .gate import TOLERANCES, error_of
from .groups import GROUPS, Group, Product
from .measure import Clock, Now, Task, peak_bytes, summary
from .operators import OPERATORS
from .peers import installed_peers
from .problems import Problem, Shape
from .providers import (
    COMPILED,
    FLOOR,
    Floor,
    Provider,
    Unavailable,
    make_provider,
    modes_of,
    names_of,
)
from .results import CaseResult, Results
from .runs import Run

SWEEP, STACK, SPARSE = "sweep", "stack", "sparse"
NAMES = (
    *("step", STACK, operators.GROUP, "encode", "reconstruction_loss", "corruption", "inference"),
    *(SPARSE, SWEEP),
)
"""All groups, the most informative first."""

SHAPES: dict[str, dict[str, tuple[Shape, ...]]] = {
    # bound by launches; by memory: few terms a result; by arithmetic
    "cpu": {
        "quick": (Shape(256, 784, 1000), Shape(4096, 64, 512), Shape(1024, 1024, 2048)),
        "full": (
            Shape(256, 784, 1000),
            Shape(8192, 64, 1024),
            Shape(1024, 784, 2000),
            Shape(1024, 2048, 4096),
        ),
    },
    "cuda": {
        "quick": (Shape(256, 784, 1000), Shape(32768, 128, 1024), Shape(8192, 4096, 8192)),
        "full": (
            Shape(256, 784, 1000),
            Shape(1024, 784, 2000),
            Shape(1024, 2048, 4096),
            Shape(65536, 128, 1024),
            Shape(8192, 4096, 16384),
            Shape(8192, 8192, 16384),
        ),
    },
}
SPARSE_SHAPES = {
    "quick": tuple(Shape(256, 256, latents) for latents in (256, 1024, 4096, 16_384)),
    "full": tuple(Shape(1024, 512, latents) for latents in (512, 2048, 8192, 32_768, 131_072)),
}
"""Of dictionaries, whose latents grow."""
SWEEP_FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)
_SWEEP_PROVIDERS = (FLOOR, "fastae", "fused", "split", "eager")
RUN_ROUNDS = 5
"""Maximum number of rounds of whole runs."""
_PEAK_PROVIDERS = ("fastae", "eager", "compile")


@dataclass(frozen=True)
class Case:
    """The unit of measuring and skipping: a group at a shape, in all its modes, by all providers."""

    group: str
    dtype: str
    shape: str
    providers: tuple[str, ...]
    peaks: tuple[str, ...] = ()
    weight: float = 1.0
    """Its share of the time, relative to others."""

    @property
    def key(self) -> str:
        return f"{self.group} {self.dtype} {self.shape}"


def sweep_shapes(base: Shape) -> dict[str, list[Shape]]:
    """By the name of what grows, M, D or H: the shapes in which the others stay as in ``base``."""
    return {
        name: [
            base._replace(**{field: max(1, round(getattr(base, field) * factor))}) for factor in SWEEP_FACTORS
        ]
        for name, field in zip("MDH", Shape._fields, strict=True)
    }


class Listener(Protocol):
    """Told what happens."""

    def begin(self, case: Case) -> None: ...

    def end(self, result: CaseResult) -> None: ...

    def skip(self, case: Case, why: str) -> None: ...


class Suite:
    """Measures cases on one device.

    Args:
        device: where.
        now: the clock of the budget, in seconds.
        clock: what times the providers.
        provider: makes one by name; ``fastae.bench.providers.make_provider``.
    """

    def __init__(
        self,
        device: torch.device,
        *,
        now: Now = time.monotonic,
        clock: Clock | None = None,
        provider: Callable[[str, Group, Problem], Provider] = make_provider,
    ) -> None:
        self.device, self.now = device, now
        self.clock = clock or Clock(device)
        self.make_provider = provider

    def cases(
        self,
        groups: Sequence[str],
        shapes: Sequence[Shape],
        dtypes: Sequence[str],
        run: Run,
        *,
        compiled: bool,
        all_compiled: bool,
    ) -> list[Case]:
        """Cases, the most informative first: every group at the first shape, then the other shapes.

        Without ``all_compiled`` torch.compile is measured at the first shape alone, except for the step:
        compilation takes most of the time.
        """
        found: list[Case] = []
        for dtype in dtypes:
            for number, shape in enumerate(shapes):
                for name in (n for n in NAMES if n in groups and n in GROUPS and n != SPARSE):
                    here = compiled and (all_compiled or number == 0 or name == "step")
                    providers = names_of(GROUPS[name], self.device, compiled=here)
                    if not all_compiled and (number or name != "step"):
                        providers = [p for p in providers if p not in ("max-autotune", "jacobian")]
                    peaks = tuple(
                        p
                        for p in _PEAK_PROVIDERS
                        if p in providers and (all_compiled or (name == "step" and p != "compile"))
                    )
                    weight = 4.0 if name == "step" else 1.0
                    found.append(Case(name, dtype, str(shape), tuple(providers), peaks, weight))
                if operators.GROUP in groups:
                    found.append(Case(operators.GROUP, dtype, str(shape), tuple(OPERATORS)))
            if STACK in groups:
                found.append(Case(STACK, dtype, str(run), (FLOOR, "fastae", "script"), weight=6.0))
            if SPARSE in groups:
                found += self._dictionaries(dtype, compiled=compiled and all_compiled, full=all_compiled)
            if SWEEP in groups:
                found += self._sweep(shapes[0], dtype)
        first = str(shapes[0])

        def worth(case: Case) -> int:
            if case.shape == first and case.group != SWEEP:
                return NAMES.index(case.group)
            others = ("step", SWEEP)
            return len(NAMES) + (others.index(case.group) if case.group in others else 2)

        return sorted(found, key=lambda case: 1 if case.group == STACK else worth(case))

    def _dictionaries(self, dtype: str, *, compiled: bool, full: bool) -> Iterator[Case]:
        providers = (FLOOR, "fastae", "eager", *(("compile",) if compiled else ()), *installed_peers())
        for shape in SPARSE_SHAPES["full" if full else "quick"]:
            peaks = providers[1:] if full else ()
            yield Case(SPARSE, dtype, str(shape), providers, peaks, weight=0.5)

    def _sweep(self, base: Shape, dtype: str) -> Iterator[Case]:
        names = names_of(GROUPS["step"], self.device, compiled=False)
        providers = tuple(name for name in _SWEEP_PROVIDERS if name in names)
        for shape in dict.fromkeys(shape for shapes in sweep_shapes(base).values() for shape in shapes):
            yield Case(SWEEP, dtype, str(shape), providers, weight=0.5)

    def run(
        self,
        cases: Sequence[Case],
        results: Results,
        seconds: float,
        *,
        save: Callable[[Results], None],
        listener: Listener,
        run: Run | None = None,
    ) -> list[Case]:
        """Measure what ``results`` does not hold yet; returns the cases that there was no time for.

        No case starts when ``seconds`` are over, and none of its providers after its own share of what is
        left: the budget is overdrawn by one provider's first call at most.
        """
        began, left_out = self.now(), []
        shares = seconds / max(1.0, sum(case.weight for case in cases))
        todo = []
        for case in cases:
            held = results.cases.get(case.key)
            if held is not None and held.covers(list(case.providers), shares * case.weight):
                listener.skip(case, "done before")
            else:
                todo.append(case)
        for number, case in enumerate(todo):
            if self.now() - began < seconds and case.dtype not in results.peaks:
                results.peaks[case.dtype] = self.machine_peaks(case.dtype)
                save(results)
            left = seconds - (self.now() - began)
            if left <= 0.0:
                left_out.append(case)
                listener.skip(case, "out of time")
                continue
            listener.begin(case)
            gc.collect()  # what earlier cases left, before memory is measured or anything timed
            share = left * case.weight / sum(other.weight for other in todo[number:])
            deadline = min(self.now() + 2.0 * share, began + seconds)
            asked = shares * case.weight
            result = CaseResult(
                case.group, case.dtype, case.shape, _tolerance(case), list(case.providers), asked
            )
            with _noting(result, case.group):
                if case.group == STACK:
                    assert run is not None
                    self._measure_run(run, result, deadline)
                elif case.group == operators.GROUP:
                    self._measure_operators(result, share, deadline, results.peaks[case.dtype])
                else:
                    self._measure(case, result, share, deadline)
            results.cases[case.key] = result
            save(results)
            listener.end(result)
        return left_out

    # --- one case ---------------------------------------------------------------------------------------

    def _measure(self, case: Case, result: CaseResult, share: float, deadline: float) -> None:
        group = GROUPS["step" if case.group == SWEEP else case.group]
        if case.group == SWEEP:
            group = replace(group, modes=("full",))
        shape, began = Shape.parse(case.shape), self.now()
        if COMPILED & set(case.providers):
            torch._dynamo.reset()  # or compiled functions of earlier shapes count against the limit
        problem = Problem.make(shape, getattr(torch, case.dtype), self.device)
        result.cost = _costs(group, problem)
        ready: dict[str, Provider | Floor] = {FLOOR: Floor(group, problem)}
        for name in case.providers:
            if name == FLOOR:
                continue
            if self.now() >= deadline and name != "fastae":
                result.notes[name], result.out_of_time = "out of time", True
                continue
            with _noting(result, name):
                provider = self.make_provider(name, group, problem)
                result.errors[name] = error_of(provider, group, problem)
                if not result.is_wrong(name):
                    ready[name] = provider
                if provider.rows < shape.rows:
                    result.rows[name] = provider.rows
        measuring = max(0.0, share - (self.now() - began)) / len(group.modes)
        for mode in group.modes:
            tasks: dict[str, Task] = {}
            for name, provider in ready.items():
                if name == FLOOR or mode in modes_of(name, group):
                    with _noting(result, name):
                        tasks[name] = self.clock.task(provider, mode)
            times = self.clock.interleaved(tasks, measuring)
            result.times[mode] = {
                name: summary(values, shape.rows / ready[name].rows) for name, values in times.items()
            }
            if self.clock.on_gpu and mode != "backward":
                whole = [name for name in tasks if ready[name].rows == shape.rows]
                result.called[mode] = {n: self.clock.called(getattr(ready[n], mode)) for n in whole}
        for name in case.peaks:
            if name in ready:
                with _noting(result, name):
                    result.peak_bytes[name] = peak_bytes(name, group.name, shape, case.dtype, self.device)

    def _measure_operators(
        self, result: CaseResult, share: float, deadline: float, peaks: dict[str, float]
    ) -> None:
        began = self.now()
        problem = Problem.make(Shape.parse(result.shape), getattr(torch, result.dtype), self.device)
        try:
            costs = {name: operators.cost_of(OPERATORS[name], problem) for name in result.asked}
        except Unavailable as error:
            result.notes = dict.fromkeys(result.asked, str(error))
            return
        tensors, tasks = operators.Tensors.of(problem), {}
        for name, cost in costs.items():
            if self.now() >= deadline:
                result.notes[name], result.out_of_time = "out of time", True
                continue
            result.cost[name], result.least[name] = [cost.bytes, cost.flops], cost.seconds(**peaks)
            with _noting(result, name):
                call = operators.Call(OPERATORS[name], tensors)
                result.errors[name] = call.error()
                if not result.is_wrong(name):
                    tasks[name] = self.clock.task(call, "forward")
        times = self.clock.interleaved(tasks, max(0.0, share - (self.now() - began)))
        result.times["forward"] = {name: summary(values) for name, values in times.items()}

    def _measure_run(self, run: Run, result: CaseResult, deadline: float) -> None:
        try:
            providers = runs.providers_of(run, result.dtype, self.device)
        except Unavailable as error:
            result.notes = dict.fromkeys(result.asked, str(error))
            return
        warm_up = replace(run, dataset=runs.first_rows(run.dataset, 2 * run.batch), epochs=1)
        for provider in runs.providers_of(warm_up, result.dtype, self.device).values():
            provider()
        tasks = {}
        for name, provider in providers.items():

            def timed(name: str = name, provider: Any = provider) -> None:
                result.losses[name] = provider()

            tasks[name] = Task(timed)
        times: dict[str, list[float]] = {name: [] for name in tasks}
        while not times[FLOOR] or self.now() < deadline:
            for name, task in tasks.items():
                times[name].append(self.clock.wall(task.run))
            if len(times[FLOOR]) >= RUN_ROUNDS:
                break
        result.times = {"full": {name: summary(values) for name, values in times.items()}}
        del result.losses[FLOOR]
        ours, theirs = result.losses["fastae"], result.losses["script"]
        result.errors = {
            "fastae": max(abs(a - b) / abs(b) for a, b in zip(ours, theirs, strict=True)),
        }

    def machine_peaks(self, dtype: str) -> dict[str, float]:
        """The machine's own ceilings: a large copy and a large square product by the library."""
        size, copied = (8192, 1 << 30) if self.clock.on_gpu else (2048, 1 << 28)
        source = torch.rand(copied // 4, device=self.device)
        target = torch.empty_like(source)
        a, b = torch.rand(2, size, size, device=self.device).to(getattr(torch, dtype))
        tasks = {"copy": Task(lambda: target.copy_(source)), "product": Task(lambda: torch.mm(a, b))}
        for task in tasks.values():
            task.run()
        best = {name: min(times) for name, times in self.clock.interleaved(tasks, 0.3).items()}
        return {
            "bytes_per_second": 2 * copied / best["copy"],
            "flops_per_second": 2 * size**3 / best["product"],
        }


@contextmanager
def _noting(result: CaseResult, name: str) -> Iterator[None]:
    """Record an exception as the provider's result, so that the others continue."""
    try:
        yield
    except Unavailable as error:
        result.notes[name] = str(error)
    except (torch.OutOfMemoryError, MemoryError):
        result.notes[name] = "out of memory"
    except Exception as error:
        result.notes[name] = f"failed: {first_line(error)}"


def _tolerance(case: Case) -> float:
    return runs.TOLERANCE if case.group == STACK else TOLERANCES[case.dtype]


def _costs(group: Group, problem: Problem) -> dict[str, list[int]]:
    """[bytes, operations] of each mode's bare products; of a copy where there are none."""
    from fastae_kernels.plan.roofline import Cost, product

    def total(products: list[Product]) -> Cost:
        size = problem.x.dtype.itemsize
        return sum((product(a.shape[0], b.shape[1], a.shape[1], size) for a, b in products), Cost())

    forward, backward = total(group.forward(problem)), total(group.backward(problem))
    if not forward.flops:
        forward = Cost(bytes=2 * problem.x.nbytes)
    costs = {"forward": forward, "backward": backward, "full": forward + backward}
    return {mode: [costs[mode].bytes, costs[mode].flops] for mode in group.modes}
