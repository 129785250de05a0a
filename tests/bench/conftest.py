"""A suite with a clock of its own, and results that were never measured."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("rich")
pytest.importorskip("sklearn")

from fastae.bench import measure, suite
from fastae.bench.results import CaseResult, Results


class Ticks:
    """A clock that goes on by ``tick`` seconds whenever it is read."""

    def __init__(self, tick: float) -> None:
        self.tick, self.time = tick, 0.0

    def __call__(self) -> float:
        self.time += self.tick
        return self.time


class Recorder:
    """A listener that keeps what it was told."""

    def __init__(self) -> None:
        self.measured: list[str] = []
        self.skipped: dict[str, str] = {}

    def begin(self, case: Any) -> None: ...

    def end(self, result: CaseResult) -> None:
        self.measured.append(result.key)

    def skip(self, case: Any, why: str) -> None:
        self.skipped[case.key] = why


PEAKS = {"float32": {"bytes_per_second": 1e10, "flops_per_second": 1e11}}


@pytest.fixture(autouse=True)
def few_rounds(monkeypatch) -> None:
    """Budgets of time in tests are generous, so that a busy machine changes nothing."""
    # of the heap that pytest has it takes half a second, at every case
    monkeypatch.setattr(suite, "gc", SimpleNamespace(collect=lambda: 0))
    monkeypatch.setattr(measure, "MOST_ROUNDS", 20)
    monkeypatch.setattr(suite, "RUN_ROUNDS", 1)


@pytest.fixture
def ticks() -> type[Ticks]:
    return Ticks


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def results() -> Callable[..., Results]:
    """Made-up results of one step at a sweep of M around 8x4x4, each provider ``ratios`` times the floor."""

    def make(**ratios: float) -> Results:
        made = Results({"device": "a machine", "device_type": "cpu"}, {"cpu": "1 MHz"}, dict(PEAKS))
        shapes = [
            *((group, "8x4x4") for group in ("step", "encode", "sweep")),
            *(("sweep", f"{m}x4x4") for m in (2, 4, 16, 32)),
            *(("sweep", f"8x{d}x4") for d in (1, 2, 8, 16)),
            *(("sweep", f"8x4x{h}") for h in (1, 2, 8, 16)),
        ]
        for group, shape in shapes:
            floor = 1e-6 * (8 + sum(map(int, shape.split("x"))))
            times = {"products": floor, **{name: floor * ratio for name, ratio in ratios.items()}}
            case = CaseResult(group, "float32", shape, 1e-5, list(times), 1.0)
            case.times["full"] = {
                name: {"median": t, "low": 0.95 * t, "high": 1.05 * t, "rounds": 9}
                for name, t in times.items()
            }
            case.errors = dict.fromkeys(ratios, 1e-7)
            case.cost["full"] = [1000, 5000]
            made.cases[case.key] = case
        return made

    return make
