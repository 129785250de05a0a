"""The kernels' random bits are philox's, bit for bit, and what is made of them is the formula."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fastae import Gaussian, Masking, SaltAndPepper, Swap, functional, ops, philox, reference
from fastae.corruption import CORRUPTIONS as CLASSES
from fastae.corruption import Corruption
from fastae.philox import seed_of_columns
from tests.kernels.drawing import a_seed, bits_of, normal_of
from tests.kernels.support import DEVICE, DTYPES, small_tiles

SEEDS = [0, 1, 2**31, 2**32, 2**62 + 12_345, 2**63 - 2, 2**63 - 1]
CORRUPTIONS = [Masking(0.4), Gaussian(0.2), SaltAndPepper(0.3)]
STREAMS = [0, 1, philox.STREAM_CODE_NOISE, philox.STREAM_CONTRACTION, philox.STREAM_PROBE]
TILES = [(1, 16), (16, 16), (16, 64), (64, 32), (4, 256)]


# --- the bits -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [16, 32])
@pytest.mark.parametrize("tile", TILES, ids=lambda tile: "x".join(map(str, tile)))
@pytest.mark.parametrize("columns", [1, 8, 15, 17, 300])
def test_bits_are_those_of_philox_for_every_tile_shape(width: int, tile: tuple[int, int], columns: int):
    rows = min(2 * tile[0] + 1, 37)
    expected = philox.random_bits(11, rows, columns, 2, width=width)
    assert torch.equal(bits_of(11, 2, rows, columns, width, tile), expected)


@pytest.mark.parametrize("width", [16, 32])
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("stream", STREAMS)
def test_bits_are_those_of_philox_for_every_seed_and_stream(width: int, seed: int, stream: int):
    expected = philox.random_bits(seed, 3, 21, stream, width=width)
    assert torch.equal(bits_of(seed, stream, 3, 21, width), expected)


@pytest.mark.parametrize("width", [16, 32])
@pytest.mark.parametrize("first_row", [2**20, 2**31, 2**34])
def test_bits_of_far_rows_are_those_of_philox(width: int, first_row: int):
    """Rows beyond 2^31, and counters beyond 2^32."""
    expected = philox.random_bits(5, 20, 100, 1, first_row, width=width)
    assert torch.equal(bits_of(5, 1, 20, 100, width, (16, 64), first_row // 16), expected)


@pytest.mark.parametrize("first", [0, 16, 48])
@pytest.mark.parametrize("corruption", CORRUPTIONS, ids=lambda c: c.kind)
def test_a_part_of_a_matrix_gets_the_noise_of_the_whole(corruption: Corruption, first: int):
    """A seed of four numbers names the first row and the first of some columns."""
    x = torch.rand(7, 57, device=DEVICE)
    seed = a_seed(2**62 + 5)
    own = slice(first, first + 16)
    place = seed_of_columns(torch.cat([seed, seed.new_tensor([5, 0, 0])]).view(torch.uint64), first, 57)
    part, whole = (
        ops.corrupt(matrix, key, corruption.kind, corruption.params, 3)
        for matrix, key in ((x[5:, own], place), (x, seed))
    )
    assert torch.equal(part, whole[5:, own])
    assert torch.equal(ops.random_signs(x[5:, own], place, 9), ops.random_signs(x, seed, 9)[5:, own])


@pytest.mark.parametrize("columns", [1, 6, 17, 64])
@pytest.mark.parametrize("tile", [(16, 16), (4, 128)], ids=str)
def test_normal_draws_are_those_of_philox_to_rounding(columns: int, tile: tuple[int, int]):
    for seed, stream in zip(SEEDS[::-3], STREAMS, strict=False):
        even = columns + columns % 2
        expected = philox.standard_normal(philox.random_bits(seed, 37, even, stream))[:, :columns]
        assert (normal_of(seed, stream, 37, columns, tile) - expected).abs().max() < 1e-5


# --- what is made of them -------------------------------------------------------------------------------

CORRUPTIONS = [
    *(Masking(p) for p in (1e-5, 0.3, 1.0)),
    Gaussian(0.4),
    *(SaltAndPepper(p, -0.5, 2.0) for p in (0.3, 1.0)),
    *(Swap(p) for p in (0.3, 1.0)),
]


def matrix(M: int, N: int, layout: str, dtype: torch.dtype) -> Tensor:
    g = torch.Generator().manual_seed(M + N)
    x = (torch.rand(M, N, generator=g) + 1.0).to(DEVICE, dtype)
    if layout == "transposed":
        return x.t().contiguous().t()
    return torch.cat((x, x), 1)[:, :N] if layout == "padded" else x


@pytest.mark.parametrize("corruption", CORRUPTIONS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("shape", "layout"),
    [((16, 32), "contiguous"), ((37, 50), "padded"), ((37, 50), "transposed")],
    ids=str,
)
def test_corruption_and_its_gradient_are_the_formula(corruption, shape, dtype: torch.dtype, layout: str):
    x = matrix(*shape, layout, dtype)
    grad = matrix(*shape, layout, dtype).flip(0) if layout == "contiguous" else x
    arguments = a_seed(99), corruption.kind, corruption.params, philox.STREAM_CORRUPTION
    leaf = x.detach().cpu().double().requires_grad_()
    expected = reference.corrupt(leaf, corruption, 99)
    (expected_grad,) = torch.autograd.grad(expected, leaf, grad.cpu().double())
    with small_tiles("split"):
        out, back = ops.corrupt(x, *arguments), ops.corrupt_backward(grad, *arguments)
    assert out.dtype == back.dtype == dtype and out.is_contiguous() and back.is_contiguous()
    exact = corruption.kind != "gaussian"
    tolerance = 0.0 if exact else max(1e-5, torch.finfo(dtype).eps)
    torch.testing.assert_close(out.cpu(), expected.detach().to(dtype), rtol=tolerance, atol=tolerance)
    eps = torch.finfo(dtype).eps  # swap's gradients are sums
    torch.testing.assert_close(back.cpu(), expected_grad.to(dtype), rtol=2 * eps, atol=0.0)


@pytest.mark.parametrize("kind", ["masking", "salt_and_pepper", "swap"])
def test_draw_at_the_threshold_is_a_hit_and_the_next_is_not(kind: str):
    """With each draw as the last hit, the last that becomes ``low``, the first of a row's share."""
    width = CLASSES[kind](0.5).event.width
    draws = philox.random_bits(99, 2, 5, philox.STREAM_CORRUPTION, width=width).long() + 2 ** (width - 1)
    x = matrix(2, 5, "contiguous", torch.float32)
    for hits in torch.cat((draws + 1, 2 * draws, 2 * draws + 2)).flatten().tolist():
        corruption = CLASSES[kind](min(hits / 2**width, 1.0))
        with small_tiles("split"):
            arguments = a_seed(99), kind, corruption.params, philox.STREAM_CORRUPTION
            out, back = ops.corrupt(x, *arguments), ops.corrupt_backward(x, *arguments)
        leaf = x.cpu().requires_grad_()
        expected = reference.corrupt(leaf, corruption, 99)
        assert torch.equal(out.cpu(), expected)
        torch.testing.assert_close(back.cpu(), torch.autograd.grad(expected, leaf, x.cpu())[0])


def test_binary_code_is_zero_where_the_draw_is_the_probability():
    bits = philox.random_bits(7, 5, 33, philox.STREAM_CODE_NOISE)
    uniform = philox.uniform(bits)
    for code, value in ((uniform, 0.0), (uniform.nextafter(torch.tensor(2.0)), 1.0)):
        out = ops.perturb(code.to(DEVICE), a_seed(7), "bernoulli", 0.0, 0.0)
        assert (out == value).all()


@pytest.mark.parametrize("p", [0.01, 0.5, 0.99])
def test_masking_stops_exactly_the_gradients_of_the_entries_it_set_to_zero(p: float):
    torch.manual_seed(0)
    x = torch.ones(100, 333, device=DEVICE, requires_grad=True)
    out = functional.corrupt(x, Masking(p))
    out.sum().backward()
    assert 0 < out.count_nonzero() < out.numel()
    assert torch.equal(x.grad, out)


def test_swap_gives_each_entry_the_gradients_of_its_copies():
    torch.manual_seed(0)
    rows, columns = 50, 70
    values = torch.arange(rows * columns, dtype=torch.float32, device=DEVICE).view(rows, columns)
    x = values.requires_grad_()
    out = functional.corrupt(x, Swap(0.5))
    out.sum().backward()
    copies = out.detach().long().flatten().bincount(minlength=x.numel()).view_as(x)
    assert (out != x).any() and torch.equal(out.long() % columns, x.long() % columns)
    assert torch.equal(x.grad.long(), copies)


def shallow(x: Tensor, w: Tensor, b: Tensor, v: Tensor) -> Tensor:
    return functional.autoencoder_loss(x, w, b, v, None, dropout=0.4).total


def deep(x: Tensor, w: Tensor, b: Tensor, v: Tensor) -> Tensor:
    eye = torch.eye(x.shape[1], device=DEVICE)
    layers = [(eye, None, "linear"), (w, b, "sigmoid")], [(v, None, "linear"), (eye, None, "linear")]
    return functional.deep_autoencoder_loss(x, *layers, dropout=0.4).total


@pytest.mark.parametrize("objective", [shallow, deep])
@pytest.mark.parametrize("strategy", ["fused", "split"])
def test_dropout_stops_exactly_the_gradients_of_the_units_it_dropped(objective: Callable, strategy: str):
    """Of one row: the decoder's weight sees which units were dropped, the encoder's bias which gradients."""
    torch.manual_seed(0)
    d, h = 5, 333
    x, w = torch.rand(1, d, device=DEVICE), torch.randn(h, d, device=DEVICE)
    b = torch.zeros(h, device=DEVICE, requires_grad=True)
    v = torch.randn(d, h, device=DEVICE, requires_grad=True)
    with small_tiles(strategy):
        objective(x, w, b, v).backward()
    dropped = (v.grad == 0.0).all(0)
    assert 0.3 < dropped.double().mean() < 0.5
    assert torch.equal(b.grad == 0.0, dropped)


@pytest.mark.parametrize("strategy", ["fused", "split"])
@pytest.mark.parametrize("units", [7, 100])
def test_dropout_has_one_mask_in_encoder_noise_and_backward(strategy: str, units: int):
    x = torch.zeros(40, 3, device=DEVICE)
    w = torch.zeros(units, 3, device=DEVICE)
    seed, options = a_seed(2**63 - 2), (None, None, None, False, False)
    with small_tiles(strategy):
        code, seen, *_ = ops.encode(x, w, None, "sigmoid", *options, seed, "none", 0.0, 0.3)
        perturbed = ops.perturb(code, seed, "none", 0.0, 0.3)
        products = [(torch.ones_like(code), None), (code, 2.0 * torch.eye(units, device=DEVICE))]
        backs = [
            ops.code_grad(grad, weight, code, code, "linear", seed=seed, dropout=0.3).dz
            for grad, weight in products
        ]
    bits = philox.random_bits(2**63 - 2, 40, units, philox.STREAM_DROPOUT, width=16)
    kept = (bits > philox.threshold(0.3)).to(DEVICE) * philox.keep_scale(0.3)
    for value, size in ((seen, 0.5), (perturbed, 0.5), (backs[0], 1.0), (backs[1], 1.0)):
        torch.testing.assert_close(value, kept.float() * size, rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ["none", "gaussian", "bernoulli"])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_perturbed_code_is_the_formula(dtype: torch.dtype, kind: str, dropout: float):
    code = matrix(37, 51, "contiguous", dtype) - 1.0
    expected = reference.perturb_code(code.cpu().float(), 7, kind, 0.2, dropout)
    with small_tiles("split"):
        out = ops.perturb(code, a_seed(7), kind, 0.2, dropout)
    torch.testing.assert_close(
        out.cpu().float(), expected, rtol=torch.finfo(dtype).eps, atol=max(1e-5, torch.finfo(dtype).eps)
    )


def test_random_signs_are_the_sign_bits_of_philox():
    like = torch.empty(37, 51, device=DEVICE)
    signs = ops.random_signs(like, a_seed(3), philox.STREAM_PROBE + 1)
    bits = philox.random_bits(3, 37, 51, philox.STREAM_PROBE + 1)
    assert torch.equal(signs.cpu(), torch.where(bits < 0, -1.0, 1.0))
