"""Which strategy, tiles and schedule a product gets."""

from __future__ import annotations

import pytest
import torch
from fastae_kernels import config
from fastae_kernels.aot import TARGETS
from fastae_kernels.launch import Target

HOPPER = TARGETS["cuda:90"]
SHAPE = (8192, 4096, 2048)


@pytest.fixture
def tf32():
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision(before)


def strategy(*shape: int, dtype: torch.dtype = torch.bfloat16, target: Target = HOPPER, **facts: bool) -> str:
    return config.plan(*shape, dtype, target, **facts).strategy


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_aligned_products_in_16_bits_are_fused(target: Target):
    assert strategy(*SHAPE, target=target) == "fused"
    assert strategy(*SHAPE, target=target, k_major=False) == "fused"


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_deep_and_unaligned_products_are_the_library_s(target: Target):
    assert strategy(8192, 4096, 8193, target=target) == "split"
    assert strategy(*SHAPE, target=target, aligned=False) == "split"


def test_float32_in_full_precision_is_the_library_s_on_cuda():
    assert strategy(*SHAPE, dtype=torch.float32) == "split"
    assert strategy(*SHAPE, dtype=torch.float32, target=TARGETS["hip:gfx942"]) == "fused"


def test_tf32_is_fused_where_both_operands_are_contiguous_along_k(tf32: None):
    assert strategy(*SHAPE, dtype=torch.float32) == "fused"
    assert strategy(*SHAPE, dtype=torch.float32, k_major=False) == "split"


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
    assert (large.block_m, large.block_n) == (128, 256) and large.persistent
    assert (small.block_m, small.block_n) == (64, 64) and not small.persistent


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_heavy_epilogues_work_on_smaller_parts(target: Target, dtype: torch.dtype):
    light = config.configurations(target, dtype)
    heavy = config.configurations(target, dtype, heavy=True)
    assert heavy
    for gemm in heavy:
        assert gemm.block_m * gemm.block_n <= 64 * 32 * gemm.warps
        assert gemm.epilogue_tile[1] >= 16  # a counter's 16 draws
        assert any((gemm.block_m, gemm.block_n) == (g.block_m, g.block_n) for g in light)


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
