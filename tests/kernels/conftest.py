"""The kernels' tests: on a GPU where there is one, else on CPU tensors in Triton's interpreter."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

import pytest
import torch

from fastae import ops

if importlib.util.find_spec("triton") is None:
    collect_ignore_glob = ["*"]


@pytest.fixture(autouse=True)
def triton_backend(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The public functions run on kernels."""
    monkeypatch.setenv("FASTAE_BACKEND", "triton")
    ops.forget_backends()
    yield
    monkeypatch.undo()
    ops.forget_backends()


@pytest.fixture(autouse=True)
def no_measured_choices(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans do not depend on what this machine's user has tuned."""
    from fastae_kernels.plan import config

    monkeypatch.setenv("FASTAE_CACHE", str(tmp_path_factory.getbasetemp() / "untuned"))
    config.forget_choices()


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """Every fresh buffer is full of nan, so that what a kernel leaves unwritten shows."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    fill = torch.utils.deterministic.fill_uninitialized_memory
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.utils.deterministic.fill_uninitialized_memory = fill
    torch.use_deterministic_algorithms(before)


@pytest.fixture(params=["fused", "split"])
def strategy(request: pytest.FixtureRequest) -> Iterator[str]:
    """Both strategies, with tiles so small that every shape has several."""
    from tests.kernels.support import small_tiles

    with small_tiles(request.param):
        yield request.param
