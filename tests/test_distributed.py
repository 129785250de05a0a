"""Training by several processes: gradients of the joined batch, and noise of each process's own."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch
from torch import Tensor

from fastae import Masking, functional
from fastae.nn import Autoencoder
from fastae.ops import forget_backends

ROWS, FEATURES, UNITS, WORLD = 8, 12, 6, 2


def model_and_data() -> tuple[Autoencoder, Tensor]:
    g = torch.Generator().manual_seed(0)
    model = Autoencoder(FEATURES, UNITS, contractive=0.3, l1=0.1, activation="tanh")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=g))
    return model, torch.rand(ROWS, FEATURES, generator=g)


def draw_mask() -> Tensor:
    """A mask from the state that every process starts with."""
    torch.manual_seed(3)
    return functional.corrupt(torch.ones(20, 50), Masking(0.5))


def gradients(model: torch.nn.Module, x: Tensor) -> dict[str, Tensor]:
    model(x).total.backward()
    return {name.removeprefix("module."): p.grad for name, p in model.named_parameters()}


def work(backend: str) -> dict[str, Tensor]:
    """One process: the gradients of its share of the batch, and its mask."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTAE_BACKEND", backend)
        forget_backends()
        model, x = model_and_data()
        parallel = torch.nn.parallel.DistributedDataParallel(model)
        results = gradients(parallel, x.chunk(WORLD)[torch.distributed.get_rank()])
        results["mask"] = draw_mask()
    forget_backends()
    return results


@pytest.fixture(scope="module", params=["torch", "triton"])
def results(request: pytest.FixtureRequest, two: Any) -> list[dict[str, Any]]:
    """Results of each of two processes."""
    if request.param == "triton" and importlib.util.find_spec("triton") is None:
        pytest.skip("needs Triton")
    return two.run(work, request.param)


def test_gradients_are_those_of_the_joined_batch(results: list[dict[str, Any]]):
    for name, expected in gradients(*model_and_data()).items():
        for result in results:
            torch.testing.assert_close(result[name], expected, rtol=1e-5, atol=1e-6, msg=name)


def test_processes_with_equal_seeds_draw_different_masks(results: list[dict[str, Any]]):
    first, second = (result["mask"] for result in results)
    assert torch.equal(first, draw_mask())
    agreement = (first == second).double().mean().item()
    assert agreement == pytest.approx(0.5, abs=5.0 * 0.5 / first.numel() ** 0.5)
