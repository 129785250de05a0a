"""Weighted sums by segments, and the sparse objective that runs on them, against PyTorch."""

from __future__ import annotations

import pytest
import torch
from fastae_kernels import operators
from fastae_kernels.operators import segments

from fastae import AuxK, functional

DTYPES = [torch.float32, torch.float16]


def entries(counts: list[int], rows: int) -> tuple[torch.Tensor, ...]:
    """Values, indices and starts of segments with so many entries."""
    g = torch.Generator().manual_seed(0)
    starts = torch.tensor([0, *counts]).cumsum(0)
    number = int(starts[-1])
    index = torch.randint(rows, (number,), generator=g)
    return torch.randn(number, generator=g), index, starts


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("counts", "width"),
    [([3, 0, 5, 1], 7), ([0, 0], 4), ([9, 2, 30, 4], 40), ([], 5)],
    ids=["short", "empty", "long", "no segments"],
)
def test_sums_and_dots(counts, width, dtype, monkeypatch):
    monkeypatch.setattr(segments, "_CHUNK", 4)  # most segments are longer
    values, index, starts = entries(counts, 11)
    g = torch.Generator().manual_seed(1)
    table = torch.randn(11, width, generator=g).to(dtype)
    other = torch.randn(len(counts), width, generator=g).to(dtype)
    place = torch.randperm(len(index), generator=g)
    sums, dots = operators.segment_sums(table, index, starts, values, other, place)
    segment = torch.arange(len(counts)).repeat_interleave(starts.diff())
    rows = table.float()[index]
    expected = torch.zeros(len(counts), width).index_add_(0, segment, values[:, None] * rows)
    tolerance = {"rtol": 2e-3, "atol": 5e-3} if dtype == torch.float16 else {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(sums.float(), expected, **tolerance)
    assert dots is not None
    torch.testing.assert_close(dots[place], (rows * other.float()[segment]).sum(1), rtol=1e-5, atol=1e-5)
    again, _ = operators.segment_sums(table, index, starts, values)
    assert torch.equal(again, sums)


@pytest.mark.parametrize("rule", ["topk:3", "batch_topk:2"])
def test_the_sparse_objective_runs_on_kernels(rule, monkeypatch):
    g = torch.Generator().manual_seed(2)
    leaves = [torch.randn(*s, generator=g).requires_grad_() for s in ((9, 5), (12, 5), (12,), (12, 5), (5,))]
    dead = torch.arange(12) < 4
    steps = []
    for backend in ("triton", "torch"):
        monkeypatch.setenv("FASTAE_BACKEND", backend)
        loss, _ = functional.sparse_autoencoder_loss(*leaves, activation=rule, auxk=AuxK(k=2), dead=dead)
        steps.append([loss.total, *torch.autograd.grad(loss.total, leaves)])
    torch.testing.assert_close(*steps, rtol=1e-4, atol=1e-5)


def test_one_latent_in_every_row_is_summed_by_chunks(monkeypatch):
    monkeypatch.setattr(segments, "_CHUNK", 8)
    values, index, starts = entries([100], 50)
    table = torch.randn(50, 6)
    sums, _ = operators.segment_sums(table, index, starts, values)
    torch.testing.assert_close(
        sums, (values[:, None] * table[index]).sum(0, keepdim=True), rtol=1e-5, atol=1e-4
    )
