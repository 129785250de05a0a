"""Weighted sums by segments, and the sparse objective that runs on them, against PyTorch."""

from __future__ import annotations

import pytest
import torch
from fastae_kernels import operators
from fastae_kernels.operators import segments, selection

from fastae import AuxK, functional, ops
from fastae.tensors import normalize_rows_, project_rows_
from tests.kernels.support import DEVICE, small_tiles

DTYPES = [torch.float32, torch.float16]


def entries(counts: list[int], rows: int) -> tuple[torch.Tensor, ...]:
    """Values, indices and starts of segments with so many entries."""
    g = torch.Generator().manual_seed(0)
    starts = torch.tensor([0, *counts]).cumsum(0)
    number = int(starts[-1])
    index = torch.randint(rows, (number,), generator=g)
    return tuple(t.to(DEVICE) for t in (torch.randn(number, generator=g), index, starts))


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
    table = torch.randn(11, width, generator=g).to(DEVICE, dtype)
    other = torch.randn(len(counts), width, generator=g).to(DEVICE, dtype)
    place = torch.randperm(len(index), generator=g).to(DEVICE)
    sums, dots = operators.segment_sums(table, index, starts, values, other, place)
    segment = torch.arange(len(counts), device=DEVICE).repeat_interleave(starts.diff())
    rows = table.float()[index]
    expected = torch.zeros(len(counts), width, device=DEVICE).index_add_(0, segment, values[:, None] * rows)
    tolerance = {"rtol": 2e-3, "atol": 5e-3} if dtype == torch.float16 else {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(sums.float(), expected, **tolerance)
    assert dots is not None
    torch.testing.assert_close(dots[place], (rows * other.float()[segment]).sum(1), rtol=1e-5, atol=1e-5)
    again, _ = operators.segment_sums(table, index, starts, values)
    assert torch.equal(again, sums)


@pytest.mark.parametrize("rule", ["topk:3", "batch_topk:2"])
def test_the_sparse_objective_runs_on_kernels(rule, monkeypatch):
    g = torch.Generator().manual_seed(2)
    shapes = (9, 5), (12, 5), (12,), (12, 5), (5,)
    leaves = [torch.randn(*shape, generator=g).to(DEVICE).requires_grad_() for shape in shapes]
    dead = torch.arange(12, device=DEVICE) < 4
    monkeypatch.setattr(selection, "_SLOTS", 32)
    steps = []
    for backend in ("triton", "torch"):
        monkeypatch.setenv("FASTAE_BACKEND", backend)
        ops.forget_backends()
        with small_tiles("fused"):
            loss, _ = functional.sparse_autoencoder_loss(*leaves, activation=rule, auxk=AuxK(k=2), dead=dead)
            steps.append([loss.total, *torch.autograd.grad(loss.total, leaves)])
    torch.testing.assert_close(*steps, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("dtype", "extra", "steps"),
    [(torch.float32, False, 6), (torch.float32, True, 3), (torch.float16, False, 3)],
)
def test_adam_by_rows_is_torchs_with_projection(dtype, extra, steps, monkeypatch):
    """Rows without entries move, too; one of them is of zeros, and stays."""
    monkeypatch.setattr(segments, "_CHUNK", 4)
    g = torch.Generator().manual_seed(0)
    values, index, starts = entries([3, 0, 11, 1], 9)
    start = torch.nn.functional.normalize(torch.randn(4, 5, generator=g).to(DEVICE), dim=1)
    start[1] = 0.0
    weight = start.clone().requires_grad_()
    adam = torch.optim.Adam([weight], 1e-2, (0.9, 0.99))
    own = [start.to(dtype), *torch.zeros(2, 4, 5, dtype=dtype, device=DEVICE)]
    again = [t.clone() for t in own]
    segment = torch.arange(4, device=DEVICE).repeat_interleave(starts.diff())
    for step in range(1, steps + 1):
        table, more = torch.randn(2, 9, 5, generator=g).to(DEVICE, dtype)
        more = more[:4] if extra else None
        grad = torch.zeros(4, 5, device=DEVICE).index_add_(0, segment, values[:, None] * table.float()[index])
        weight.grad = grad if more is None else grad + more
        project_rows_(weight.grad, weight.data)
        adam.step()
        normalize_rows_(weight.data)
        for tensors in (own, again):
            count = torch.tensor(float(step), device=DEVICE)
            options = {"entries": (table, index, starts, values), "gradient": more, "unit": True}
            ops.adam_rows(*tensors, count, 1e-2, (0.9, 0.99), 1e-8, **options)
    tolerance = {"rtol": 1e-6, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 1e-2, "atol": 3e-3}
    torch.testing.assert_close(own[0].float(), weight.detach(), **tolerance)
    assert all(map(torch.equal, own, again)) and (dtype == torch.float32 or own[0][1].abs().max() == 0)


def test_one_latent_in_every_row_is_summed_by_chunks(monkeypatch):
    monkeypatch.setattr(segments, "_CHUNK", 8)
    values, index, starts = entries([100], 50)
    table = torch.randn(50, 6, device=DEVICE)
    sums, _ = operators.segment_sums(table, index, starts, values)
    torch.testing.assert_close(
        sums, (values[:, None] * table[index]).sum(0, keepdim=True), rtol=1e-5, atol=1e-4
    )
