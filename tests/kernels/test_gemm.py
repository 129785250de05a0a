"""Products, schedules and reductions: every tile once, and every layout."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from fastae_kernels import operators
from fastae_kernels.device.tiles import entries, inside, tile_indices
from fastae_kernels.operators import run as kernels
from fastae_kernels.plan import config
from fastae_kernels.plan.config import GemmConfig
from torch import Tensor

from fastae import ops
from fastae.ops import torch_impl
from tests.kernels.support import DEVICE, DTYPES, ON_GPU, assert_accurate, small_tiles


def rand(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(shape, generator=g).to(DEVICE, dtype)


def transposed(x: Tensor) -> Tensor:
    """The same matrix, its columns contiguous."""
    return x.t().contiguous().t()


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Launches of products: the number of programs, and operands by TMA."""
    seen: list[dict[str, Any]] = []

    def launch(kernel: Any, programs: int, device: torch.device, *args: Any, **options: Any) -> None:
        if kernel is kernels.gemm:
            seen.append({**options, "programs": programs})
        original(kernel, programs, device, *args, **options)

    original = kernels.launch
    monkeypatch.setattr(kernels, "launch", launch)
    return seen


# --- the gradient of a weight ---------------------------------------------------------------------------


def weight_grad(a, b, scale=None, weight=None, u=None, a2=None, b2=None, scale2=None) -> Tensor:
    """The formula, in the dtype of ``a``."""

    def product(a: Tensor, b: Tensor, scale: Tensor | None) -> Tensor:
        if scale is not None:
            a = a * (scale[:, None] if scale.dim() else scale).to(a.dtype)
        return a.t() @ b

    out = product(a, b, scale)
    if u is not None:
        out = out + u.to(out.dtype)[:, None] * weight
    return out if a2 is None else out + product(a2, b2, scale2)


def weight_grad_cases(dtype: torch.dtype, m: int = 37, h: int = 21, d: int = 45) -> dict[str, tuple]:
    a, a2, b, b2 = (rand(m, n, dtype=dtype, seed=n) for n in (h, h, d, d))
    weight, u = rand(h, d, dtype=dtype), rand(h)
    scalar, rows = torch.tensor(0.3, device=DEVICE), rand(m)
    return {
        "single": (a, b),
        "transposed operands": (transposed(a), transposed(b)),
        "scalar scale": (a, b, scalar),
        "row scale": (a, b, rows),
        "diagonal": (a, b, None, weight, u),
        "diagonal, transposed weight": (a, b, scalar, transposed(weight), u),
        "dual": (a, b, None, None, None, a2, b2),
        "dual, scalar scale": (a, b, None, weight, u, a2, b2, scalar),
        "dual, row scale": (a, b, None, transposed(weight), u, a2, b2, rows),
        "dual, both scales": (a, b, scalar, weight, u, transposed(a2), b2, rows),
    }


def cast(arguments: tuple[Tensor | None, ...], dtype: torch.dtype) -> list[Tensor | None]:
    return [None if t is None else t.to(dtype) for t in arguments]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", weight_grad_cases(torch.float32))
def test_weight_gradient_is_the_formula(case: str, dtype: torch.dtype, strategy: str):
    arguments = weight_grad_cases(dtype)[case]
    out = operators.weight_grad(*arguments)
    assert out.dtype == dtype and out.is_contiguous()
    assert_accurate(case, out, weight_grad(*cast(arguments, torch.float64)), weight_grad(*arguments))


@pytest.mark.parametrize(("m", "h", "d"), [(0, 5, 7), (5, 0, 7), (5, 7, 0), (1, 1, 1)])
def test_weight_gradient_of_empty_matrices(m: int, h: int, d: int, strategy: str):
    for case, arguments in weight_grad_cases(torch.float32, m, h, d).items():
        torch.testing.assert_close(operators.weight_grad(*arguments), weight_grad(*arguments), msg=case)


# --- schedules ------------------------------------------------------------------------------------------


@triton.jit
def count_visits(value, block_m, block_n, M, N, out, BM: tl.constexpr, BN: tl.constexpr):
    """An epilogue that counts how often it sees each entry."""
    row, col = tile_indices(block_m, block_n, BM, BN)
    tl.atomic_add(entries(out, row, col, N), tl.full((BM, BN), 1.0, tl.float32), mask=inside(row, col, M, N))


def visits(M: int, N: int, **options: Any) -> Tensor:
    out = torch.zeros(M, N, device=DEVICE)
    how = {"block_m": 16, "block_n": 32, "block_k": 16, "warps": 4, "stages": 2, **options}
    kernels.fused(rand(M, 8), rand(8, N), None, None, None, count_visits, out, GemmConfig(**how))
    return out


@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("group", [1, 2, 3, 8])
@pytest.mark.parametrize(
    ("tiles_m", "tiles_n"), [(1, 1), (1, 3), (3, 1), (2, 2), (5, 1), (1, 5), (7, 3), (3, 7)]
)
def test_every_entry_is_visited_once(tiles_m: int, tiles_n: int, group: int, persistent: bool, launches):
    out = visits(16 * tiles_m - 3, 32 * tiles_n - 5, group=group, persistent=persistent)
    assert (out == 1.0).all()
    tiles = tiles_m * tiles_n
    if persistent and not ON_GPU:  # the interpreter stands for four multiprocessors
        assert launches[0]["programs"] == min(tiles, 4)
    elif not persistent:
        assert launches[0]["programs"] == tiles


@pytest.mark.parametrize("subtiles", [1, 2, 4, 8])
@pytest.mark.parametrize("columns", [1, 63, 64, 130])
def test_every_entry_is_visited_once_in_parts_of_tiles(subtiles: int, columns: int):
    assert (visits(21, columns, block_n=64, subtiles=subtiles) == 1.0).all()


def encode(x: Tensor, weight: Tensor) -> list[Tensor]:
    """Code, code after dropout, penalty, l1 and sums over rows."""
    bias, q = rand(len(weight), dtype=x.dtype), rand(len(weight)).square()
    seed = torch.tensor([3], device=DEVICE)
    results = ops.encode(x, weight, bias, "tanh", q, l1=True, code_sum=True, seed=seed, dropout=0.3)
    return [*results[:2], *results[3:6]]


@pytest.mark.parametrize("subtiles", [1, 2, 4])
@pytest.mark.parametrize(("group", "persistent"), [(1, False), (2, True)])
def test_results_do_not_depend_on_schedule_or_parts(subtiles: int, group: int, persistent: bool):
    x, weight = rand(37, 20), rand(100, 20)
    with small_tiles("split"):
        expected = encode(x, weight)
    options = {"block_n": 64, "group": group, "persistent": persistent, "subtiles": subtiles}
    with small_tiles("fused", **options):
        results = encode(x, weight)
    assert torch.equal(results[1] == 0.0, expected[1] == 0.0)
    torch.testing.assert_close(results, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("m", "d", "h"), [(0, 5, 7), (5, 0, 7), (5, 7, 0), (0, 0, 3)])
def test_products_of_empty_matrices(m: int, d: int, h: int, strategy: str):
    """Without features the code is that of the bias; sums over nothing are 0."""
    x, weight = rand(m, d), rand(h, d)
    code, dropped, penalty, l1, sums = encode(x, weight)
    expected = torch.tanh(rand(h)).expand(m, h) if d == 0 else torch.tanh(x @ weight.t() + rand(h))
    torch.testing.assert_close(code, expected)
    assert dropped.shape == (m, h) and penalty.shape == (m,)
    torch.testing.assert_close(l1, expected.abs().sum(1))
    torch.testing.assert_close(sums, expected.sum(0))
    arguments = rand(m, d), weight.t(), expected.contiguous(), None, "tanh"
    dz, db, *_ = operators.code_grad(*arguments, sums=torch.float32)
    torch.testing.assert_close(dz, (rand(m, d) @ weight.t()) * (1.0 - expected.square()))
    torch.testing.assert_close(db, dz.sum(0))


def test_configuration_override_reaches_every_product(launches):
    """So that the tests above test what they say."""
    with config.using(strategy="fused", gemm=GemmConfig(32, 16, 16, 4, 2)):
        operators.encode(rand(5, 7), rand(6, 7), None, "linear")
    assert (launches[0]["BM"], launches[0]["BN"], launches[0]["BK"]) == (32, 16, 16)


# --- tensor descriptors ---------------------------------------------------------------------------------


def products(dtype: torch.dtype, m: int, d: int, h: int) -> dict[str, Callable[[], Any]]:
    """One product of each orientation of its operands."""
    x, weight, code = rand(m, d, dtype=dtype), rand(h, d, dtype=dtype), rand(m, h, dtype=dtype)
    return {
        "x W^T": lambda: operators.encode(x, weight, None, "linear")[0],
        "x W^T, transposed W": lambda: operators.encode(x, transposed(weight), None, "linear")[0],
        "g V": lambda: operators.code_grad(x, weight.t().contiguous(), code, None, "linear")[0],
        "g V, tied": lambda: operators.code_grad(x, weight.t(), code, None, "linear")[0],
        "a^T b": lambda: operators.weight_grad(code, x),
        "a^T b, both transposed": lambda: operators.weight_grad(transposed(code), transposed(x)),
        "two": lambda: operators.weight_grad(code, x, None, None, None, transposed(code), x),
    }


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", products(torch.float32, 1, 1, 1))
@pytest.mark.parametrize("persistent", [False, True])
def test_operands_by_descriptors_are_those_by_pointers(
    dtype: torch.dtype, case: str, persistent: bool, launches
):
    product = products(dtype, 40, 24, 56)[case]
    by_pointers, by_descriptors = [], []
    for results, tma in ((by_pointers, False), (by_descriptors, True)):
        with small_tiles("fused", tma=tma, persistent=persistent):
            results.append(product())
    assert [launch["TMA"] for launch in launches] == [False, True]
    torch.testing.assert_close(by_descriptors, by_pointers, rtol=0.0, atol=0.0)


@pytest.mark.parametrize("case", products(torch.float32, 1, 1, 1))
@pytest.mark.parametrize(("m", "d", "h"), [(37, 21, 45), (1, 1, 1), (0, 8, 16)])
def test_unaligned_operands_come_by_pointers(case: str, m: int, d: int, h: int, launches):
    product = products(torch.float32, m, d, h)[case]
    with small_tiles("fused", tma=True):
        result = product()
    assert not any(launch["TMA"] for launch in launches)
    with small_tiles("split"):
        torch.testing.assert_close(result, product(), rtol=1e-5, atol=1e-5)


def test_shifted_and_expanded_operands_come_by_pointers(launches):
    weight = rand(16, 24)
    shifted = rand(8 * 24 + 1)[1:].view(8, 24)
    for x in (shifted, rand(24).expand(8, 24), rand(8, 48)[:, ::2], rand(2, 96)[:, ::4]):
        with small_tiles("fused", tma=True):
            code = operators.encode(x, weight, None, "linear")[0]
        torch.testing.assert_close(code, x @ weight.t(), rtol=1e-5, atol=1e-5)
    assert not any(launch["TMA"] for launch in launches)


# --- reductions -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (3, 513), (130, 17), (300, 700)], ids=str)
def test_squared_norms_of_any_layout(shape: tuple[int, int], dtype: torch.dtype):
    weight = rand(*shape, dtype=dtype)
    exact, own = (weight.to(t).square().sum(1) for t in (torch.float64, torch.float32))
    for layout in (weight, transposed(weight), torch.cat((weight, weight), 1)[:, : shape[1]]):
        assert_accurate("squared norms", operators.squared_norms(layout), exact, own)


@pytest.mark.parametrize("rows", [0, 1, 16, 17, 300])
@pytest.mark.parametrize("length", [0, 1, 127, 129])
def test_fold_sums_each_job_and_scales_it(rows: int, length: int):
    one, two = rand(rows, length), rand(rows, length, seed=1)
    scale = torch.tensor(0.5, device=DEVICE)
    columns = kernels.columns(one), kernels.columns(two, scale=scale, factor=3.0, dtype=torch.float16)
    totals = kernels.total(one, "sum", 7), kernels.total(two, "mean", 7)
    expected = one.sum(0), (1.5 * two.sum(0)).half(), one.sum(), two.sum() / 7.0
    kernels.fold_all(None, *columns, *totals)
    for job, exact in zip((*columns, *totals), expected, strict=True):
        assert job is not None
        torch.testing.assert_close(
            job.out, exact, rtol=1e-3 if exact.dtype == torch.half else 1e-5, atol=1e-4
        )


@pytest.mark.parametrize("strategy_", ["fused", "split"])
@pytest.mark.parametrize("dual", [False, True])
def test_a_large_batch_in_float16_is_scaled_before_it_overflows(strategy_: str, dual: bool):
    """20000 products of 4 are beyond float16's 65504, and their mean is not."""
    rows = 20_000
    a = torch.full((rows, 4), 4.0, dtype=torch.float16, device=DEVICE)
    b, scale = torch.ones_like(a), torch.tensor(1.0 / rows, device=DEVICE)
    arguments = (a * 0, b, None, None, None, a, b, scale) if dual else (a, b, scale, *[None] * 5)
    with config.using(strategy=strategy_):  # pyright: ignore[reportArgumentType]
        ours = ops.weight_grad(*arguments)
    theirs = torch_impl.weight_grad(*arguments)
    for gradient in (ours, theirs):
        torch.testing.assert_close(
            gradient.float(), torch.full((4, 4), 4.0, device=DEVICE), rtol=0.02, atol=0
        )
