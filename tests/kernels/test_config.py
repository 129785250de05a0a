"""Strategy, tiles and schedule of products."""

from __future__ import annotations

import pytest
import torch
from fastae_kernels import operators
from fastae_kernels.launch import Target
from fastae_kernels.operators import buffers, run
from fastae_kernels.plan import config, explain
from fastae_kernels.tools.aot import TARGETS
from torch import Tensor

from tests.kernels.comparison import uniform
from tests.kernels.support import DEVICE

HOPPER = TARGETS["cuda:90"]
SHAPE = (8192, 4096, 2048)
SHALLOW = (8192, 4096, 512)


@pytest.fixture
def tf32():
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision(before)


def strategy(*shape: int, dtype: torch.dtype = torch.bfloat16, target: Target = HOPPER, **facts: bool) -> str:
    return config.plan(*shape, dtype, target, **facts).strategy


FUSING = pytest.mark.parametrize("target", [TARGETS[name] for name in ("cuda:80", "cuda:90", "hip:gfx942")])
"""On a B200 the estimate of one program per multiprocessor leaves every large product to the library."""


@FUSING
def test_aligned_products_in_16_bits_are_fused(target: Target):
    assert strategy(*SHALLOW, target=target) == "fused"
    assert strategy(*SHALLOW, target=target, k_major=False) == "fused"


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_deep_and_unaligned_products_are_the_library_s(target: Target):
    assert strategy(8192, 4096, 16384, target=target) == "split"
    assert strategy(*SHAPE, target=target, aligned=False) == "split"


@FUSING
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fusion_ends_at_one_depth(target: Target, dtype: torch.dtype, tf32: None):
    """The saved pass does not grow with K, the library's lead does."""
    depths = [strategy(8192, 8192, 1 << k, dtype=dtype, target=target) for k in range(7, 17)]
    assert depths == sorted(depths) and depths[0] == "fused" and depths[-1] == "split"


def test_faster_memory_favours_the_library():
    """The pass after a library's product is bytes, on an H200 as well, but fewer seconds of them."""
    cards = [HOPPER._replace(device=f"NVIDIA {name}") for name in ("H100", "H200")]
    own = [
        [strategy(8192, 8192, 256 * k, target=card) for k in range(1, 64)].count("fused") for card in cards
    ]
    assert 0 < own[1] < own[0] < 63


def test_few_tiles_of_deep_products_are_the_library_s():
    """A weight's gradient of many rows and few units: a library splits the rows among multiprocessors."""
    assert config.plan(1000, 784, 8192, torch.bfloat16, HOPPER, operator="weight_grad").strategy == "split"
    assert config.plan(1000, 784, 256, torch.bfloat16, HOPPER, operator="weight_grad").strategy == "fused"


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
    before = config.plan(*SHALLOW, torch.float32, HOPPER)
    assert config.plan(*SHALLOW, torch.float32, HOPPER) is before
    torch.set_float32_matmul_precision("highest")
    assert (before.strategy, config.plan(*SHALLOW, torch.float32, HOPPER).strategy) == ("fused", "split")


def test_float32_in_full_precision_is_the_library_s_on_cuda():
    assert strategy(*SHALLOW, dtype=torch.float32) == "split"
    assert strategy(*SHALLOW, dtype=torch.float32, target=TARGETS["hip:gfx942"]) == "fused"


def test_tf32_is_fused_where_both_operands_are_contiguous_along_k(tf32: None):
    assert strategy(*SHALLOW, dtype=torch.float32) == "fused"
    assert strategy(*SHALLOW, dtype=torch.float32, k_major=False) == "split"


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
