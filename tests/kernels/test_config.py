"""Strategy, tiles and schedule of products."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fastae_kernels import operators
from fastae_kernels.launch import Target
from fastae_kernels.operators import buffers, run
from fastae_kernels.plan import choices, config, estimate, explain
from fastae_kernels.plan.schedules import GemmConfig
from fastae_kernels.tools.aot import TARGETS
from torch import Tensor

from tests.kernels.comparison import uniform
from tests.kernels.support import DEVICE, OVERLAPPED

HOPPER = TARGETS["cuda:90"]
SHAPE = (8192, 4096, 2048)
SMALL = (256, 1024, 256)


@pytest.fixture
def tf32():
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision(before)


def strategy(*shape: int, dtype: torch.dtype = torch.bfloat16, target: Target = HOPPER, **facts: bool) -> str:
    return config.plan(*shape, dtype, target, **facts).strategy


FUSING = pytest.mark.parametrize("target", [TARGETS[name] for name in ("cuda:80", "cuda:90", "hip:gfx942")])

MEASURED = {  # on an H200 in bfloat16, microseconds fused and split
    ("encode", 8192, 16384, 4096): (1646.2, 1831.3),
    ("decode_loss", 8192, 4096, 16384): (1654.1, 1682.6),
    ("code_grad", 8192, 16384, 4096): (1672.6, 1903.6),
    ("weight_grad dual", 16384, 4096, 8192): (3211.3, 3327.7),
    ("encode", 8192, 1000, 784): (42.0, 39.7),
    ("decode_loss", 8192, 784, 1000): (73.5, 52.2),
    ("code_grad", 8192, 1000, 784): (55.1, 46.7),
    ("weight_grad dual", 1000, 784, 8192): (91.2, 66.8),
    ("decode_loss", 1024, 784, 2000): (22.5, 18.8),
    ("code_grad", 1024, 2000, 784): (21.3, 19.4),
    ("weight_grad dual", 2000, 784, 1024): (23.4, 26.3),
    ("encode", 256, 1000, 784): (10.4, 11.5),
    ("decode_loss", 256, 784, 1000): (11.8, 13.2),
    ("code_grad", 256, 1000, 784): (11.2, 12.7),
    ("weight_grad dual", 1000, 784, 256): (11.5, 14.0),
}


@pytest.mark.parametrize("case", MEASURED, ids=str)
def test_the_estimate_finds_what_was_measured(case: tuple[str, int, int, int]):
    operator, *shape = case
    k_major = operator in ("encode", "code_grad")
    key = choices.Key(operator, "bfloat16", "ieee", False, True, k_major, *shape)
    card = HOPPER._replace(device="NVIDIA H200")
    plan = config.heuristic(key, torch.bfloat16, card)
    own, split = MEASURED[case]
    assert plan.strategy == ("fused" if own < split else "split")
    times = {"fused": estimate.fused(key, torch.bfloat16, card, plan.gemm), "split": estimate.split(
        key, torch.bfloat16, card
    )}  # fmt: skip
    assert times[plan.strategy].seconds == pytest.approx(1e-6 * min(own, split), rel=0.15)


@FUSING
def test_small_aligned_products_in_16_bits_are_fused(target: Target):
    assert strategy(*SMALL, target=target) == "fused"
    assert strategy(*SMALL, target=target, k_major=False) == "fused"


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_unaligned_products_are_the_library_s(target: Target):
    assert strategy(*SMALL, target=target, aligned=False) == "split"


@FUSING
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fusion_ends_at_one_depth(target: Target, dtype: torch.dtype, tf32: None):
    """The saved pass does not grow with K, the library's lead does."""
    depths = [strategy(256, 1024, 1 << k, dtype=dtype, target=target) for k in range(5, 17)]
    assert depths == sorted(depths) and depths[0] == "fused" and depths[-1] == "split"


def test_an_explanation_has_the_plans_of_a_step():
    rows = explain(8192, 784, 1000, torch.bfloat16, HOPPER)
    assert [row.operator for row in rows] == ["encode", "decode_loss", "code_grad", "weight_grad dual"]
    for row in rows:
        cheaper = "fused" if row.fused.seconds <= row.split.seconds else "split"
        assert row.plan.strategy == cheaper and row.reason == "the least estimate"
        assert row.operator in str(row) and str(row.plan) in str(row)
    odd = explain(8192, 785, 1000, torch.bfloat16, HOPPER)
    assert odd[0].plan.strategy == "split" and "16 bytes" in odd[0].reason


def test_products_that_memory_bounds_are_fused():
    """Few rows: both operands' bytes outweigh the arithmetic, and the saved pass is a share of theirs."""
    assert strategy(64, 4096, 64) == "fused"


def test_answers_are_kept_and_follow_torch_s_precision(tf32: None):
    before = config.plan(*SMALL, torch.float32, HOPPER)
    assert config.plan(*SMALL, torch.float32, HOPPER) is before
    torch.set_float32_matmul_precision("highest")
    assert (before.strategy, config.plan(*SMALL, torch.float32, HOPPER).strategy) == ("fused", "split")


def test_float32_in_full_precision_is_the_library_s_on_cuda():
    assert strategy(*SMALL, dtype=torch.float32) == "split"
    assert strategy(64, 4096, 64, dtype=torch.float32, target=TARGETS["hip:gfx942"]) == "fused"


def test_tf32_is_fused_where_both_operands_are_contiguous_along_k(tf32: None):
    assert strategy(*SMALL, dtype=torch.float32) == "fused"
    assert strategy(*SMALL, dtype=torch.float32, k_major=False) == "split"


@pytest.mark.parametrize(("setting", "expected"), [("highest", "ieee"), ("high", "tf32"), ("medium", "tf32")])
def test_float32_products_follow_torch_s_setting(setting: str, expected: str):
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(setting)
    try:
        assert config.precision(torch.float32, HOPPER) == expected
        assert config.precision(torch.bfloat16, HOPPER) == "ieee"
    finally:
        torch.set_float32_matmul_precision(before)


def test_large_products_get_the_largest_tile_and_small_ones_enough_tiles():
    large = config.plan(8192, 16384, 2048, torch.bfloat16, HOPPER).gemm
    small = config.plan(256, 1000, 784, torch.bfloat16, HOPPER).gemm
    assert large.block_m * large.block_n == 128 * 256 and large.persistent
    assert (small.block_m, small.block_n) == (64, 32) and not small.persistent


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_heavy_epilogues_work_on_smaller_parts(target: Target, dtype: torch.dtype):
    light = config.configurations(target, dtype)
    heavy = config.configurations(target, dtype, heavy=True)
    assert heavy
    for gemm in heavy:
        if gemm.epilogue_warps:
            assert gemm.block_m * gemm.epilogue_tile[1] <= 16 * 32 * 4  # a crew's
        else:
            assert gemm.block_m * gemm.block_n <= 64 * 32 * gemm.warps
        assert gemm.epilogue_tile[1] >= 16  # a counter's 16 draws
        assert any((gemm.block_m, gemm.block_n) == (g.block_m, g.block_n) for g in light)


def test_epilogues_have_warps_of_their_own_where_a_rounded_product_does():
    def overlapped(operator: str, dtype: torch.dtype, **options: Any) -> int:
        found = config.configurations(HOPPER, dtype, operator=operator, **options)
        return sum(gemm.epilogue_warps > 0 for gemm in found)

    for operator in ("encode", "decode_loss", "decode_loss_target_grad", "code_grad"):
        assert overlapped(operator, torch.bfloat16) == (3 if operator == "encode" else 2)
        assert overlapped(operator, torch.bfloat16, aligned=False) == overlapped(operator, torch.float16) == 0
    for operator in ("weight_grad", "weight_grad dual"):
        assert overlapped(operator, torch.bfloat16) == 0
    large = config.plan(8192, 16384, 4096, torch.bfloat16, HOPPER, operator="encode")
    assert large.strategy == "fused" and large.gemm.epilogue_warps == 4


@pytest.mark.parametrize("operator", config.SELECTIONS)
def test_a_selection_has_warps_of_its_own_that_find_its_product_in_float32(operator: str):
    def overlapped(target: Target, dtype: torch.dtype, **options: Any) -> list[GemmConfig]:
        found = config.configurations(target, dtype, operator=operator, **options)
        return [gemm for gemm in found if gemm.epilogue_warps]

    for dtype in (torch.bfloat16, torch.float16):
        found = overlapped(HOPPER, dtype)
        assert len(found) == 2 and not overlapped(HOPPER, dtype, aligned=False)
        assert all(config.fits(gemm, dtype, HOPPER, exact=True) for gemm in found)
        for gemm in found:
            assert gemm.shared_bytes(2, exact=True) - gemm.shared_bytes(2) == 2 * gemm.block_m * gemm.block_n
        assert config.fits(OVERLAPPED, dtype, HOPPER)
        assert not config.fits(OVERLAPPED, dtype, HOPPER, exact=True)
    assert not overlapped(HOPPER, torch.float32) and not overlapped(TARGETS["cuda:80"], torch.bfloat16)
    large = config.plan(8192, 131072, 4096, torch.bfloat16, HOPPER, operator=operator)
    assert large.gemm == overlapped(HOPPER, torch.bfloat16)[0]


def test_unaligned_operands_get_tiles_without_descriptors():
    assert not any(gemm.tma for gemm in config.configurations(HOPPER, torch.bfloat16, aligned=False))


def test_using_overrides_and_comes_back():
    before = config.plan(*SHAPE, torch.bfloat16, HOPPER)
    with config.using(strategy="split"):
        with config.using(elementwise=config.PassConfig(16, 32, 4)):
            inner = config.plan(*SHAPE, torch.bfloat16, HOPPER)
        assert (inner.strategy, inner.elementwise.block_n) == ("split", 32)
        assert config.plan(*SHAPE, torch.bfloat16, HOPPER).elementwise == before.elementwise
    assert config.plan(*SHAPE, torch.bfloat16, HOPPER) == before


# --- alignment --------------------------------------------------------------------------------------------

BY_DESCRIPTORS = config.GemmConfig(16, 32, 16, 4, 2, tma=True)


@pytest.fixture
def looked_at(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The strides of every operand whose alignment is looked at."""
    strides: list[tuple[int, int]] = []
    aligned = buffers.aligned

    def recording(operand: Tensor) -> bool:
        strides.append(operand.stride())  # pyright: ignore[reportArgumentType]
        return aligned(operand)

    monkeypatch.setattr(buffers, "aligned", recording)
    return strides


def padded(rows: int, columns: int, seed: int) -> Tensor:
    """Rows that start at multiples of 16 bytes, of a width that is none."""
    return uniform(rows, 32, seed=seed).float()[:, :columns]


def test_alignment_is_looked_at_once_a_call(looked_at):
    x, weight = uniform(33, 24).float(), uniform(40, 24, seed=1).float()
    with config.using(strategy="fused", gemm=BY_DESCRIPTORS):
        operators.encode(x, weight, None, "linear")
    assert looked_at == [(24, 1), (1, 24)]


@pytest.mark.parametrize("scaled", [False, True])
def test_rows_that_are_scaled_lie_anew(scaled: bool, looked_at, monkeypatch):
    """They are closely packed, so that descriptors which served before do not serve them."""
    descriptors: list[Tensor] = []
    describe = run.descriptor

    def recording(operand: Tensor, block: tuple[int, int]):
        descriptors.append(operand)
        return describe(operand, block)

    monkeypatch.setattr(run, "descriptor", recording)
    a, b = padded(20, 13, 0), padded(20, 27, 1)
    scale = torch.linspace(1.0, 2.0, 20, device=DEVICE) if scaled else None
    with config.using(strategy="fused", gemm=BY_DESCRIPTORS):
        result = operators.weight_grad(a, b, scale)
    exact = (a if scale is None else a * scale[:, None]).double().t() @ b.double()
    torch.testing.assert_close(result.double(), exact, rtol=1e-5, atol=1e-5)
    assert len(descriptors) == (0 if scaled else 2)
    assert looked_at[:2] == [(1, 32), (32, 1)] and looked_at[2:3] == ([(1, 13)] if scaled else [])
