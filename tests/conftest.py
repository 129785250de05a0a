"""Fixtures shared by the tests."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before any kernel is imported

from fastae import Swap, functional, philox
from tests.processes import Group
from tests.support import EVERYTHING


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Run the tests that share a module's fixtures in one process, which makes them once."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _with_fixtures(config.rootpath, nodeid.split("::")[0]) or nodeid.split("[")[0]

    return Scheduling(config, log) if config.getoption("dist") == "load" else None


@functools.cache
def _with_fixtures(root: Path, file: str) -> str | None:
    """A file if it has fixtures of its module."""
    return file if 'scope="module"' in (root / file).read_text(encoding="utf-8") else None


def _group(size: int) -> Iterator[Group]:
    if not (torch.distributed.is_available() and torch.distributed.is_gloo_available()):
        pytest.skip("needs gloo")
    group = Group(size)
    yield group
    group.close()


@pytest.fixture(scope="session")
def two() -> Iterator[Group]:
    """A group of two processes."""
    yield from _group(2)


@pytest.fixture(scope="session")
def four() -> Iterator[Group]:
    """A group of four processes."""
    yield from _group(4)


class Parameters(NamedTuple):
    """An autoencoder's tensors; ``x`` and ``target`` lie in [0, 1], every weight is of size 1."""

    x: Tensor
    weight: Tensor
    bias: Tensor
    decoder_weight: Tensor
    decoder_bias: Tensor
    target: Tensor

    def leaves(self, *, dtype: torch.dtype | None = None) -> Parameters:
        """Copies of the tensors that require a gradient."""
        return Parameters(*(t.detach().to(dtype or t.dtype, copy=True).requires_grad_() for t in self))


@pytest.fixture(scope="session")
def parameters() -> Callable[..., Parameters]:
    """A factory: weights of size 1 make a formula that is wrong in a factor or a term show."""

    def make(rows: int = 5, features: int = 7, units: int = 6, seed: int = 0) -> Parameters:
        g = torch.Generator().manual_seed(seed)
        shapes = (units, features), (units,), (features, units), (features,)
        weights = [torch.randn(shape, generator=g, dtype=torch.float64) for shape in shapes]
        x, target = torch.rand(2, rows, features, generator=g, dtype=torch.float64)
        return Parameters(x, *weights, target)

    return make


@pytest.fixture(scope="session")
def seeded() -> Callable[[int], int]:
    """Seeds torch and returns the seed that the next noisy operation will draw."""

    def seed(number: int = 0) -> int:
        torch.manual_seed(number)
        drawn = int(philox.draw_seed(torch.device("cpu")))
        torch.manual_seed(number)
        return drawn

    return seed


Call = Callable[..., tuple[Tensor, ...]]


def _objective(x, w, b, v, c, t, reduction: str) -> tuple[Tensor, ...]:
    terms = functional.autoencoder_loss(x, w, b, v, c, target=t, reduction=reduction, **EVERYTHING)
    return tuple(term for term in terms if term is not None)


_CALLS: dict[str, Call] = {
    "encode": lambda x, w, b, v, c, t, reduction: (functional.encode(x, w, b, "gelu"),),
    "contractive_encode": lambda x, w, b, v, c, t, reduction: functional.contractive_encode(
        x, w, b, "tanh", reduction=reduction
    ),
    "reconstruction_loss": lambda x, w, b, v, c, t, reduction: (
        functional.reconstruction_loss(x, v, c, t, reduction=reduction),
    ),
    "corrupt": lambda x, w, b, v, c, t, reduction: (functional.corrupt(x, Swap(0.4)),),
    "autoencoder_loss": _objective,
    "autoencoder_loss, tied": lambda x, w, b, v, c, t, reduction: _objective(x, w, b, None, c, t, reduction),
}


@pytest.fixture(scope="session")
def everything() -> dict[str, Any]:
    """Every option of ``autoencoder_loss`` at once."""
    return EVERYTHING


@pytest.fixture(params=_CALLS, scope="session")
def call(request: pytest.FixtureRequest) -> Call:
    """Each function in turn, from :class:`Parameters` (of as many units as features) and a reduction."""
    return _CALLS[request.param]
