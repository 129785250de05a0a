"""Every group, provider and mode under pytest-benchmark; the same cases as ``fastae bench``.

Providers are not interleaved here, so ratios move with the machine's clock; trust ``fastae bench`` for those.
"""

from __future__ import annotations

import statistics
from functools import cache

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from fastae.bench.gate import TOLERANCES, error_of
from fastae.bench.groups import GROUPS
from fastae.bench.measure import Clock, peak_bytes
from fastae.bench.problems import Problem, Shape
from fastae.bench.providers import FLOOR, Floor, Unavailable, make_provider, modes_of, names_of
from fastae.devices import resolve_device

DEVICE = resolve_device("auto")
CASES = [
    (group, mode, name)
    for group in GROUPS.values()
    for name in names_of(group, DEVICE)
    for mode in (group.modes if name == FLOOR else modes_of(name, group))
]


@cache
def problem_of(shape: Shape, dtype: str) -> Problem:
    return Problem.make(shape, getattr(torch, dtype), DEVICE)


@cache
def floor_seconds(clock: Clock, group: str, mode: str, shape: Shape, dtype: str) -> float:
    floor = Floor(GROUPS[group], problem_of(shape, dtype))
    times = clock.interleaved({FLOOR: clock.task(floor, mode)}, 0.2)
    return statistics.median(times[FLOOR])


@pytest.mark.parametrize(
    ("group", "mode", "name"), CASES, ids=[f"{g.name}-{mode}-{name}" for g, mode, name in CASES]
)
def test_group(
    benchmark: BenchmarkFixture, clock: Clock, group, mode: str, name: str, shape: Shape, dtype: str
) -> None:
    benchmark.group = f"{group.name} {mode} {dtype} {shape}"
    problem = problem_of(shape, dtype)
    if name == FLOOR:
        provider = Floor(group, problem)
    else:
        torch._dynamo.reset()
        try:
            provider = make_provider(name, group, problem)
        except Unavailable as reason:
            pytest.skip(str(reason))
        error = error_of(provider, group, problem)
        assert error <= TOLERANCES[dtype], f"{name} is off by {error:.1e}"
        benchmark.extra_info["error"] = error
    task = clock.task(provider, mode)

    def run() -> None:
        task.run()
        if clock.on_gpu:
            torch.cuda.synchronize()

    def before() -> None:
        if task.before is not None:
            task.before()

    benchmark.pedantic(run, setup=before, rounds=20, warmup_rounds=2)
    scale = shape.rows / provider.rows
    assert benchmark.stats is not None
    median: float = benchmark.stats.stats.median  # pyright: ignore[reportAssignmentType]
    benchmark.extra_info |= {
        "shape": list(shape),
        "rows": provider.rows,
        "ratio": scale * median / floor_seconds(clock, group.name, mode, shape, dtype),
    }
    if mode == group.modes[-1] and name in ("fastae", "eager"):
        benchmark.extra_info["peak_bytes"] = peak_bytes(name, group.name, shape, dtype, DEVICE)
