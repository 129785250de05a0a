"""Options and fixtures of ``pytest benchmarks --benchmark-only``."""

from __future__ import annotations

import pytest

from fastae.bench.measure import Clock
from fastae.bench.problems import DTYPES, Shape
from fastae.bench.suite import SHAPES
from fastae.devices import resolve_device

DEVICE = resolve_device("auto")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("fastae")
    group.addoption("--shapes", nargs="+", default=[], help="rows x features x units, as in 256x784x1000")
    group.addoption("--dtype", choices=DTYPES, default="float32")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "shape" in metafunc.fixturenames:
        given = [Shape.parse(text) for text in metafunc.config.getoption("--shapes") or ()]
        metafunc.parametrize("shape", given or SHAPES[DEVICE.type]["quick"], ids=str)


@pytest.fixture(scope="session")
def clock() -> Clock:
    return Clock(DEVICE)


@pytest.fixture(scope="session")
def dtype(request: pytest.FixtureRequest) -> str:
    return str(request.config.getoption("--dtype"))
