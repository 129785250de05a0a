"""Whole runs under pytest-benchmark: greedy pretraining on digits by the engine and by a plain script."""

from __future__ import annotations

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from fastae.bench import runs
from fastae.commands.bench import training_run
from fastae.devices import resolve_device

DEVICE = resolve_device("auto")


@pytest.fixture(scope="module")
def run() -> runs.Run:
    return training_run("digits", "quick")


@pytest.mark.parametrize("name", ["products", "fastae", "script"])
def test_stack(benchmark: BenchmarkFixture, run: runs.Run, name: str, dtype: str) -> None:
    benchmark.group = f"stack {dtype} {run}"
    providers = runs.providers_of(run, dtype, DEVICE)
    losses = benchmark.pedantic(providers[name], rounds=3, warmup_rounds=1)
    benchmark.extra_info["losses"] = losses
