"""Training by several processes: gradients of the joined batch, and noise of each process's own."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fastae import Masking, functional
from fastae.nn import Autoencoder

ROWS, FEATURES, UNITS, WORLD = 8, 12, 6, 2

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (torch.distributed.is_available() and torch.distributed.is_gloo_available()), reason="needs gloo"
    ),
]


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


def work(rank: int, folder: str) -> None:
    """One process: its share of the batch, and its mask."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=WORLD)
    try:
        model, x = model_and_data()
        parallel = torch.nn.parallel.DistributedDataParallel(model)
        results = gradients(parallel, x.chunk(WORLD)[rank])
        torch.save(results | {"mask": draw_mask()}, f"{folder}/{rank}.pt")
    finally:
        torch.distributed.destroy_process_group()


@pytest.fixture(scope="module", params=["torch", "triton"])
def results(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Results of each of two processes."""
    backend, folder = request.param, tmp_path_factory.mktemp("ranks")
    with pytest.MonkeyPatch.context() as patch:
        if backend == "triton":
            pytest.importorskip("triton")
            patch.setenv("TRITON_INTERPRET", "1")
        patch.setenv("FASTAE_BACKEND", backend)
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setattr(sys, "path", [str(Path(path).resolve()) for path in sys.path])
        torch.multiprocessing.spawn(work, (str(folder),), WORLD)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(WORLD)]


def test_gradients_are_those_of_the_joined_batch(results: list[dict[str, Any]]):
    for name, expected in gradients(*model_and_data()).items():
        for result in results:
            torch.testing.assert_close(result[name], expected, rtol=1e-5, atol=1e-6, msg=name)


def test_processes_with_equal_seeds_draw_different_masks(results: list[dict[str, Any]]):
    first, second = (result["mask"] for result in results)
    assert torch.equal(first, draw_mask())
    agreement = (first == second).double().mean().item()
    assert agreement == pytest.approx(0.5, abs=5.0 * 0.5 / first.numel() ** 0.5)
