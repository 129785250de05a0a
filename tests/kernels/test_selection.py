"""The exact selection's kernels against stable sorts, bit for bit."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from fastae_kernels.device import selection as epilogues
from fastae_kernels.operators import selection
from fastae_kernels.plan.roofline import product
from fastae_kernels.tools import sparse_cost

from fastae import ops
from fastae.ops import torch_impl
from tests.kernels.support import DEVICE, ON_GPU, small_tiles
from tests.sparse.test_selection import LATENTS, arguments, preactivations


@pytest.fixture
def few_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows with rising values have more candidates than slots."""
    monkeypatch.setattr(selection, "_SLOTS", 32)


NAMES = ["normal", "integers", "constant", "rising", "negative zero", "infinite", "minus infinity"]


@pytest.mark.parametrize(
    ("name", "k", "strategy"),
    [*((name, 3, "fused") for name in NAMES), ("rising", 20, "split"), ("infinite", 3, "split")],
)
def test_top_entries_are_those_of_a_stable_sort(name: str, k: int, strategy: str, few_slots: None):
    z, problem = arguments(preactivations(name)[:2])
    with small_tiles(strategy):
        values, latents = selection.top_entries(*(None if t is None else t.to(DEVICE) for t in problem), k)
    expected, order = z.sort(dim=1, descending=True, stable=True)
    assert torch.equal(latents.cpu(), order[:, :k])
    assert torch.equal(values.cpu(), expected[:, :k])


@pytest.fixture
def short_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lists hold the entries of one row beside those that are kept, and are written in two parts."""
    monkeypatch.setattr(selection, "_FLAT", 1)
    monkeypatch.setattr(selection, "_SAMPLE", 2)
    monkeypatch.setattr(selection, "_PRODUCT", 2 * LATENTS)


FLAT_CASES = pytest.mark.parametrize(
    ("name", "strategy"),
    [*((name, "fused") for name in [*NAMES, "all negative"]), ("growing", "split")],
)


@FLAT_CASES
def test_batch_entries_are_those_of_a_stable_sort(name: str, strategy: str, short_lists: None):
    _, problem = arguments(preactivations(name))
    with small_tiles(strategy):
        found = selection.batch_entries(*(None if t is None else t.to(DEVICE) for t in problem), 19)
    for one, other in zip(found, torch_impl.batch_entries(*problem, 19), strict=True):
        assert torch.equal(one.cpu(), other)


@FLAT_CASES
def test_entries_above_are_all_of_them_in_order(name: str, strategy: str, short_lists: None):
    z, problem = arguments(preactivations(name))
    bound = torch.linspace(-0.5, 1.0, LATENTS)
    on_device = [None if t is None else t.to(DEVICE) for t in (*problem, bound)]
    with small_tiles(strategy):
        found = selection.entries_above(*on_device)
        enough = selection.entries_above(*on_device, most=len(torch.nonzero(z > bound)))
        for one, two, other in zip(found, enough, torch_impl.entries_above(*problem, bound), strict=True):
            assert torch.equal(one.cpu(), other) and torch.equal(one, two)
        assert selection.entries_above(*on_device, most=-1) is None


def test_nan_is_above_every_bound_and_flat_lists_may_be_empty(short_lists: None):
    x, weight = torch.ones(3, 2, device=DEVICE), torch.rand(20, 2, device=DEVICE)
    x[1, 0] = torch.nan
    with small_tiles("fused"):
        values, latents, offsets = ops.batch_entries(x, weight, None, 12)
        assert (
            offsets.tolist() == [0, 0, 12, 12] and values.isnan().all() and latents.tolist() == [*range(12)]
        )
        values, latents, offsets = ops.entries_above(x, weight, None, torch.tensor(5.0, device=DEVICE))
        assert offsets.tolist() == [0, 0, 20, 20] and values.isnan().all()
        for number, rows in ((0, x), (0, x[:0])):
            values, latents, offsets = ops.batch_entries(rows, weight, None, number)
            assert not len(values) and offsets.tolist() == [0] * (len(rows) + 1)
        assert ops.entries_above(x[:0], weight, None, torch.zeros(20, device=DEVICE))[2].tolist() == [0]


def test_rows_with_more_candidates_than_slots_are_computed_again(few_slots: None):
    """The last of them are found nowhere else, as the first fill the slots."""
    g = torch.Generator().manual_seed(0)
    x, weight, bias = torch.rand(3, 70, generator=g), torch.rand(150, 70, generator=g), torch.arange(150.0)
    x[1] = torch.nan
    with small_tiles("fused"):
        values, latents = ops.top_entries(*(t.to(DEVICE) for t in (x, weight, bias)), 4)
    order = (x @ weight.t() + bias)[::2].sort(dim=1, descending=True, stable=True)
    assert torch.equal(latents.cpu()[::2], order.indices[:, :4])
    torch.testing.assert_close(values.cpu()[::2], order.values[:, :4], rtol=1e-6, atol=0.0)
    assert latents[1].tolist() == [0, 1, 2, 3] and values[1].isnan().all()


@pytest.mark.parametrize(
    "adjacent", [2, pytest.param(8, marks=pytest.mark.skipif(ON_GPU, reason="as compiled"))]
)
def test_rows_of_wide_tiles_have_several_groups_of_bits(
    adjacent: int, few_slots: None, monkeypatch: pytest.MonkeyPatch
):
    """With a thread per four columns, and with one per row, as where the epilogue has warps of its own."""
    if adjacent == 8:
        monkeypatch.setattr(epilogues, "adjacent", lambda tile: 8)
        monkeypatch.setattr(epilogues, "octets", lambda tile: 4)
    g = torch.Generator().manual_seed(0)
    x, weight = (torch.randint(-3, 4, (n, 8), generator=g).float() for n in (5, 150))
    z = x @ weight.t()
    with small_tiles("fused", block_n=256, subtiles=1):
        values, latents = selection.top_entries(x.to(DEVICE), weight.to(DEVICE), None, 20)
        above = selection.entries_above(
            x.to(DEVICE), weight.to(DEVICE), None, torch.tensor(9.0, device=DEVICE)
        )
    order = z.sort(dim=1, descending=True, stable=True)
    assert torch.equal(latents.cpu(), order.indices[:, :20])
    assert torch.equal(values.cpu(), order.values[:, :20])
    assert above is not None and torch.equal(above[1].cpu(), (z > 9.0).nonzero()[:, 1])


def test_sums_of_lower_precision_are_not_rounded_and_a_subset_is_searched_alone():
    x = torch.tensor([[2048.0, 1.0]], device=DEVICE).half()
    weight = torch.tensor([[1.0, 0.0], [9.0, 9.0], [1.0, 1.0], [1.0, 0.5]], device=DEVICE).half()
    values, latents = ops.top_entries(x, weight, None, 2, torch.tensor([0, 2, 3], device=DEVICE))
    assert latents.tolist() == [[2, 3]] and values.tolist() == [[2049.0, 2048.5]]


@pytest.mark.parametrize(
    ("k", "keep", "slots"), [(1, 16, 512), (32, 32, 512), (65, 128, 1024), (2048, 2048, 4096)]
)
def test_rounds_cover_every_latent_and_expect_half_of_the_free_slots(k: int, keep: int, slots: int):
    assert selection.layout(k) == (keep, slots)
    for latents in (keep, 1000, 131_072):
        parts = list(selection.rounds(latents, keep, slots))
        assert parts[0].start == 0 and parts[-1].stop == latents
        assert parts[0].stop == min(latents, slots)
        for before, part in itertools.pairwise(parts):
            assert before.stop == part.start
            expected = keep * (part.stop - part.start) / part.start
            assert part.stop - part.start <= slots - keep or expected <= (slots - keep) / 2
        assert max(part.stop - part.start for part in selection.rounds(latents, keep, slots, 100)) <= 100


def test_costs_are_those_of_the_product_without_its_result():
    M, D, H, k = 8192, 4096, 131_072, 64
    found, bare = sparse_cost.top_entries(M, D, H, 2, k), product(M, H, D, 2)
    assert found.flops == bare.flops
    assert 2 * D * (M + H) < found.bytes < bare.bytes / 2
    decode = sparse_cost.segment_sums(M * k, M, D, 2)
    assert decode.bytes == M * k * (2 * D + 12) + M * (2 * D + 8)
    step = sparse_cost.step_by_rows(M, D, H, 2, k)
    assert step["adam_rows"].bytes < 2 * H * D * 25 + 2 * M * k * (2 * D + 12)
    assert sparse_cost.batch_entries(M, D, H, 2, M * k).flops == bare.flops
    table = (Path(__file__).parents[2] / "docs" / "sparse.md").read_text(encoding="utf-8")
    assert all(line in table for line in sparse_cost.markdown().splitlines())
    assert set(sparse_cost.step(M, D, H, 2, k)) >= {"top_entries", "decode", "decode_grad", "encode_grad"}


@pytest.mark.skipif(not ON_GPU, reason="only a GPU runs programs in any order")
def test_results_repeat_bit_for_bit():
    g = torch.Generator(DEVICE).manual_seed(0)
    x = torch.randn(512, 256, generator=g, device=DEVICE).bfloat16()
    weight = torch.randn(20_000, 256, generator=g, device=DEVICE).bfloat16()
    calls = (
        lambda: ops.top_entries(x, weight, None, 32),
        lambda: ops.batch_entries(x, weight, None, 512 * 32),
        lambda: ops.entries_above(x, weight, None, torch.tensor(48.0, device=DEVICE)),
    )
    for call in calls:
        first, *others = (call() for _ in range(6))
        assert all(torch.equal(*pair) for again in others for pair in zip(again, first, strict=True))
