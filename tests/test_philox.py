"""The random bits against an implementation in plain integers, and their statistics."""

from __future__ import annotations

import math
import multiprocessing
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from fastae import philox

WORD = 2**64
MANY = (10_000, 1_000)  # rows and columns of 1e7 draws


def philox4x64(counter: tuple[int, int, int, int], key: tuple[int, int]) -> list[int]:
    """Ten rounds of Philox4x64 (Salmon et al. 2011)."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        high0, low0 = divmod(0xD2E7470EE14C6C93 * c0, WORD)
        high1, low1 = divmod(0xCA5A826395121157 * c2, WORD)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B97F4A7C15) % WORD, (k1 + 0xBB67AE8584CAA73B) % WORD
    return [c0, c1, c2, c3]


def draw(seed: int, stream: int, row: int, column: int, columns: int) -> int:
    """One draw as the documented int32, from (seed, stream, row, column) alone."""
    counter = row * math.ceil(columns / 8) + column // 8
    words = philox4x64((counter, 0, 0, 0), (seed, stream))
    half = words[column % 8 // 2] >> (32 * (column % 2)) & 0xFFFFFFFF
    return half - 2**32 if half >= 2**31 else half


@pytest.fixture(scope="module")
def many() -> Tensor:
    return philox.random_bits(20_240_601, *MANY, philox.STREAM_CORRUPTION)


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


# --- the bits -------------------------------------------------------------------------------------------


def test_plain_implementation_gives_the_published_answers():
    """Two known answers of the Random123 distribution."""
    ones = WORD - 1
    assert philox4x64((0, 0, 0, 0), (0, 0)) == [
        0x16554D9ECA36314C,
        0xDB20FE9D672D0FDC,
        0xD7E772CEE186176B,
        0x7E68B68AEC7BA23B,
    ]
    assert philox4x64((ones, ones, ones, ones), (ones, ones)) == [
        0x87B092C3013FE90B,
        0x438C3C67BE8D0224,
        0x9CC7D7C69CD777B6,
        0xA09CAEBF594F0BA0,
    ]


@pytest.mark.parametrize("columns", [1, 2, 7, 8, 9, 17])
@pytest.mark.parametrize("first_row", [0, 1, 5, 2**40])
@pytest.mark.parametrize(
    ("seed", "stream"), [(0, 0), (1, 0), (0, 1), (2**63 - 2, 2), (987_654_321_987_654_321, 19)]
)
def test_bits_are_philox_of_seed_stream_row_and_column(seed: int, stream: int, first_row: int, columns: int):
    bits = philox.random_bits(seed, 3, columns, stream, first_row)
    expected = [[draw(seed, stream, first_row + r, c, columns) for c in range(columns)] for r in range(3)]
    assert bits.dtype == torch.int32
    assert bits.tolist() == expected


def test_first_row_shifts_the_rows():
    whole = philox.random_bits(7, 20, 13, 1)
    assert torch.equal(philox.random_bits(7, 15, 13, 1, first_row=5), whole[5:])


@pytest.mark.parametrize("rows", [0, 3])
def test_empty_matrices_have_no_bits(rows: int):
    assert philox.random_bits(1, rows, 0, 0).shape == (rows, 0)
    assert philox.random_bits(1, 0, 5, 0).shape == (0, 5)


@pytest.mark.parametrize(
    "shape",
    [(0, 5), (5, 0), (1, 1), (1000, 301), (70_000, 7), (3, 200_000), (131_073, 1)],
    ids=lambda shape: "x".join(map(str, shape)),
)
@pytest.mark.parametrize("count", [1, 2, 5])
def test_blocks_are_the_bits_in_order_for_any_number_of_threads(
    shape: tuple[int, int], count: int, threads: None
):
    torch.set_num_threads(count)
    rows = 0
    expected = philox.random_bits(11, *shape, 2)
    for block, bits in philox.bit_blocks(11, *shape, 2):
        assert block.start == rows
        assert torch.equal(bits, expected[block])
        rows = block.stop
    assert rows == shape[0]


def test_blocks_survive_interleaving_and_abandoned_iterations(threads: None):
    torch.set_num_threads(3)
    shape = (3000, 301)
    next(philox.bit_blocks(1, *shape, 0))
    pairs = zip(philox.bit_blocks(1, *shape, 0), philox.bit_blocks(2, *shape, 0), strict=True)
    expected = philox.random_bits(1, *shape, 0), philox.random_bits(2, *shape, 0)
    for (block, one), (_, two) in pairs:
        assert torch.equal(one, expected[0][block]) and torch.equal(two, expected[1][block])


def _last_block(queue, shape: tuple[int, int]) -> None:
    *_, (_, bits) = philox.bit_blocks(1, *shape, 0)
    queue.put(bits[-1, :4].tolist())


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
def test_blocks_work_in_a_forked_child_of_a_process_that_drew(threads: None):
    torch.set_num_threads(2)
    shape = (3000, 301)
    list(philox.bit_blocks(1, *shape, 0))
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_last_block, args=(queue, shape), daemon=True)
    child.start()
    try:
        assert queue.get(timeout=20) == philox.random_bits(1, *shape, 0)[-1, :4].tolist()
    finally:
        child.kill()
        child.join()


# --- statistics -----------------------------------------------------------------------------------------


def correlation(a: Tensor, b: Tensor) -> float:
    return torch.corrcoef(torch.stack((a.flatten(), b.flatten())).double())[0, 1].item()


def test_seeds_streams_rows_and_columns_are_uncorrelated(many: Tensor):
    part = many[:200]
    others = {
        "seed": philox.random_bits(20_240_602, *part.shape, philox.STREAM_CORRUPTION),
        "stream": philox.random_bits(20_240_601, *part.shape, philox.STREAM_DROPOUT),
        "row": many[1:201],
        "column": many[:200].roll(1, 1),
    }
    for name, other in others.items():
        assert not torch.equal(part, other), name
        assert abs(correlation(part, other)) < 5.0 / math.sqrt(part.numel()), name


@pytest.mark.parametrize("p", [1e-5, 0.01, 0.25, 0.5, 0.999])
def test_events_have_their_probability(many: Tensor, p: float):
    for draws, width in ((many, 32), (many.view(torch.int16), 16)):
        hits = (draws <= philox.threshold(p, width)).sum().item()
        deviation = math.sqrt(p * (1.0 - p) * draws.numel())
        assert abs(hits - p * draws.numel()) < 5.0 * deviation + draws.numel() * 2.0 ** -(width + 1)


@pytest.mark.parametrize("byte", range(4))
def test_every_byte_is_uniform(many: Tensor, byte: int):
    counts = np.bincount(many.numpy().view(np.uint8)[:, byte::4].ravel(), minlength=256)
    expected = many.numel() / 256
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert abs(chi_square - 255) < 5.0 * math.sqrt(2 * 255)


def test_standard_normal_has_the_moments_and_no_outliers(many: Tensor):
    normal = philox.standard_normal(many)
    assert normal.dtype == torch.float32 and normal.shape == MANY
    assert normal.abs().max() < 5.8
    assert correlation(normal[:, 0::2], normal[:, 1::2]) == pytest.approx(0.0, abs=5.0 / math.sqrt(5e6))
    normal, n = normal.double(), normal.numel()
    assert normal.mean().item() == pytest.approx(0.0, abs=5.0 / math.sqrt(n))
    assert normal.var().item() == pytest.approx(1.0, abs=5.0 * math.sqrt(2.0 / n))
    assert normal.pow(3).mean().item() == pytest.approx(0.0, abs=5.0 * math.sqrt(15.0 / n))
    assert normal.pow(4).mean().item() == pytest.approx(3.0, abs=5.0 * math.sqrt(96.0 / n))
    beyond_two = normal.abs().gt(2.0).double().mean().item()
    assert beyond_two == pytest.approx(math.erfc(math.sqrt(2.0)), abs=5.0 * math.sqrt(0.0434 / n))


def test_standard_normal_is_the_transform_of_pairs_of_columns():
    bits = philox.random_bits(1, 20, 6, 0)
    uniform = [[(draw & 0xFFFFFFFF) >> 8 for draw in row] for row in bits.tolist()]
    expected = [
        radius * wave(2.0 * math.pi * second / 2**24)
        for row in uniform
        for first, second in zip(row[::2], row[1::2], strict=True)
        for radius in [math.sqrt(-2.0 * math.log((first + 1) / 2**24))]
        for wave in (math.cos, math.sin)
    ]
    torch.testing.assert_close(
        philox.standard_normal(bits).flatten(), torch.tensor(expected), rtol=1e-5, atol=1e-5
    )


def test_standard_normal_is_finite_for_extreme_bits():
    bits = torch.tensor([[0, 0, -1, -1, 0, -1, -1, 0, 2**31 - 1, -(2**31)]], dtype=torch.int32)
    normal = philox.standard_normal(bits)
    assert normal.isfinite().all() and normal.abs().max() < 5.8


@pytest.mark.parametrize("width", [16, 32])
@pytest.mark.parametrize("p", [2.0**-16, 1e-4, 0.1, 1.0 / 3.0, 0.5, 1.0 - 2.0**-16, 1.0])
def test_threshold_has_the_probability_to_half_a_pattern(p: float, width: int):
    patterns = philox.threshold(p, width) + 2 ** (width - 1) + 1
    assert patterns == philox.hit_count(p, width)
    assert abs(patterns / 2**width - p) <= 2.0 ** -(width + 1)


@pytest.mark.parametrize(("width", "dtype"), [(16, torch.int16), (32, torch.int32)])
def test_only_certain_events_always_happen_and_possible_ones_can(width: int, dtype: torch.dtype):
    every = torch.tensor([torch.iinfo(dtype).min, -1, 0, torch.iinfo(dtype).max], dtype=dtype)
    assert (every <= philox.threshold(1.0, width)).all()
    assert (every <= philox.threshold(1e-30, width)).tolist() == [True, False, False, False]
    assert (every <= philox.threshold(1.0 - 1e-12, width)).tolist() == [True, True, True, False]


@pytest.mark.parametrize("p", [1e-9, 0.1, 0.25, 0.999999])
def test_dropping_and_scaling_keeps_the_mean_exactly(p: float):
    kept = 2**16 - philox.hit_count(p)
    assert kept > 0 and kept * philox.keep_scale(p) == 2**16


@pytest.mark.parametrize("columns", [1, 7, 16, 40])
def test_draws_of_16_bits_are_the_halves_of_those_of_32(columns: int):
    half = philox.random_bits(3, 5, columns, 2, 4, width=16)
    padded = -(-columns // 16) * 16
    whole = philox.random_bits(3, 5, padded // 2, 2, 4).contiguous().view(torch.int16)
    assert half.dtype == torch.int16 and torch.equal(half, whole[:, :columns])


# --- seeds ----------------------------------------------------------------------------------------------


def test_seeds_follow_torch_manual_seed():
    cpu = torch.device("cpu")
    torch.manual_seed(3)
    first, second = philox.draw_seed(cpu), philox.draw_seed(cpu)
    torch.manual_seed(3)
    assert torch.equal(philox.draw_seed(cpu), first)
    assert not torch.equal(first, second)
    assert first.shape == (1,) and first.dtype == torch.int64 and first.item() >= 0


def test_seeds_follow_a_generator_and_leave_the_default_one_alone():
    cpu = torch.device("cpu")
    state = torch.get_rng_state()
    one, two = (philox.draw_seed(cpu, torch.Generator().manual_seed(n)) for n in (5, 6))
    assert torch.equal(philox.draw_seed(cpu, torch.Generator().manual_seed(5)), one)
    assert not torch.equal(one, two)
    assert torch.equal(torch.get_rng_state(), state)


def test_seeds_drawn_ahead_differ_and_never_run_out():
    cpu, generator = torch.device("cpu"), torch.Generator().manual_seed(5)
    alone = philox.draw_seed(cpu, torch.Generator().manual_seed(5))
    torch.manual_seed(3)
    with philox.drawing_ahead(3):
        seeds = [philox.draw_seed(cpu) for _ in range(7)]
        assert torch.equal(philox.draw_seed(cpu, generator), alone)
    torch.manual_seed(3)
    with philox.drawing_ahead(3):
        assert all(torch.equal(philox.draw_seed(cpu), seed) for seed in seeds)
    assert len({int(seed) for seed in seeds}) == 7
    assert all(seed.shape == (1,) and seed.data_ptr() % 16 == seeds[0].data_ptr() % 16 for seed in seeds)
