"""Corruption processes: their descriptions, draws and gradients."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastae import Emphasis, Gaussian, Masking, SaltAndPepper, Swap, functional, ops, parse_corruption, philox
from fastae import reference as R
from fastae.corruption import Corruption

KINDS = [Masking(0.3), Gaussian(0.7), SaltAndPepper(0.4, -1.5, 2.25), Swap(0.35)]
EVERY = pytest.mark.parametrize("corruption", KINDS, ids=lambda c: c.kind)
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def matrix(rows: int = 5, columns: int = 7, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(0)).to(dtype)


def draw(x: Tensor, corruption: Corruption, seed: int = 5, stream: int = 0) -> Tensor:
    return ops.corrupt(x, torch.tensor([seed]), corruption.kind, corruption.params, stream)


# --- descriptions ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [-0.1, 1.1, math.nan, math.inf])
@pytest.mark.parametrize("cls", [Masking, SaltAndPepper, Swap])
def test_probability_outside_the_unit_interval_is_refused(cls, p: float):
    with pytest.raises(ValueError, match=rf"{cls.__name__}: p must be in \[0, 1\], got {p}"):
        cls(p)


@pytest.mark.parametrize("std", [-0.1, math.nan, math.inf])
def test_impossible_deviation_is_refused(std: float):
    with pytest.raises(ValueError, match=f"Gaussian: std must be a finite number >= 0, got {std}"):
        Gaussian(std)


@pytest.mark.parametrize("ends", [(math.nan, 1.0), (0.0, math.inf)])
def test_impossible_ends_are_refused(ends: tuple[float, float]):
    with pytest.raises(ValueError, match="SaltAndPepper: low and high must be finite"):
        SaltAndPepper(0.1, *ends)


@pytest.mark.parametrize("name", ["corrupted", "clean"])
@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_impossible_emphasis_is_refused(name: str, value: float):
    with pytest.raises(ValueError, match=f"Emphasis: {name} must be a finite number >= 0, got {value}"):
        Emphasis(**{name: value})


def test_descriptions_are_immutable_values():
    assert Masking(0.25) == Masking(0.25) != Swap(0.25)
    assert len({Masking(0.25), Masking(0.25), Swap(0.25)}) == 2
    with pytest.raises(AttributeError):
        Masking(0.25).p = 0.5


def test_salt_and_pepper_is_black_and_white_by_default():
    assert SaltAndPepper(0.1).params == [0.1, 0.0, 1.0]


# --- text -----------------------------------------------------------------------------------------------

_probability = st.floats(0.0, 1.0)
_number = st.floats(allow_nan=False, allow_infinity=False)


@given(
    st.one_of(
        st.builds(Masking, _probability),
        st.builds(Gaussian, st.floats(0.0, 1e38)),
        st.builds(SaltAndPepper, _probability, _number, _number),
        st.builds(Swap, _probability),
    )
)
@settings(max_examples=100, deadline=None, derandomize=True)
def test_text_goes_there_and_back(corruption: Corruption):
    assert parse_corruption(str(corruption)) == corruption


@pytest.mark.parametrize(
    ("text", "corruption"),
    [
        ("masking:0.25", Masking(0.25)),
        (" Gaussian:1e-1 ", Gaussian(0.1)),
        ("salt-and-pepper:0.1", SaltAndPepper(0.1)),
        ("salt_and_pepper:0.1:-1:1", SaltAndPepper(0.1, -1.0, 1.0)),
        ("swap: 1", Swap(1.0)),
        ("none", None),
        ("None ", None),
    ],
)
def test_text_is_read_leniently(text: str, corruption: Corruption | None):
    assert parse_corruption(text) == corruption


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'' is not one of none, masking, gaussian, salt_and_pepper, swap"),
        ("blur:0.1", "'blur:0.1' is not one of none, masking"),
        ("none:0.1", "'none:0.1' is not one of none"),
        ("masking", "'masking' has 0 numbers; masking takes p"),
        ("masking:0.1:0.2", "'masking:0.1:0.2' has 2 numbers; masking takes p"),
        ("salt_and_pepper:0.1:0:1:2", "has 4 numbers; salt_and_pepper takes p, low, high"),
        ("masking:a half", "'masking:a half' has a part that is not a number"),
        ("masking:", "'masking:' has a part that is not a number"),
        ("masking:2", r"Masking: p must be in \[0, 1\], got 2.0"),
        ("gaussian:nan", "Gaussian: std must be a finite number >= 0, got nan"),
    ],
)
def test_unreadable_text_is_refused_by_name(text: str, message: str):
    with pytest.raises(ValueError, match=message):
        parse_corruption(text)


# --- the operator against the reference -----------------------------------------------------------------


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Equal to the last bit but for the signs of zeros."""
    return a.dtype == b.dtype and torch.equal(a, b)


@EVERY
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(5, 7), (4, 1), (1, 1), (0, 3), (3, 0), (301, 1001)], ids=str)
def test_operator_is_the_reference_bit_for_bit(corruption, dtype: torch.dtype, shape: tuple[int, int]):
    x = matrix(*shape, dtype)
    assert same_bits(draw(x, corruption), R.corrupt(x, corruption, 5))


@EVERY
def test_streams_and_seeds_draw_differently(corruption: Corruption):
    x = matrix(50, 20)
    draws = [draw(x, corruption, seed, stream) for seed, stream in ((5, 0), (6, 0), (5, 1))]
    assert same_bits(draws[2], R.corrupt(x, corruption, 5, 1))
    assert not any(torch.equal(a, b) for a, b in ((draws[0], draws[1]), (draws[0], draws[2])))


@pytest.mark.parametrize("corruption", [Masking(0), Gaussian(0), SaltAndPepper(0), Swap(0)], ids=str)
def test_nothing_happens_with_probability_zero(corruption: Corruption):
    x = matrix(300, 11)
    out = draw(x, corruption)
    assert torch.equal(out, x) and out.data_ptr() != x.data_ptr()
    assert torch.equal(R.corrupt(x, corruption, 5), x)


def test_everything_happens_with_probability_one():
    x = matrix(300, 11) + 10.0
    assert not draw(x, Masking(1)).any()
    assert set(draw(x, SaltAndPepper(1, -2.0, 3.0)).unique().tolist()) == {-2.0, 3.0}
    assert (draw(x, Swap(1)) != x).double().mean() > 0.98  # but for a row that drew itself
    for corruption in (Masking(1), SaltAndPepper(1), Swap(1)):
        assert R.corrupted_entries(x, corruption, 5).all()


@pytest.mark.parametrize("corruption", [Masking(0.5), SaltAndPepper(0.5)], ids=lambda c: c.kind)
@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_a_replaced_entry_leaves_no_trace(corruption: Corruption, bad: float):
    """A replaced entry and its gradient do not matter, even if infinite or NaN."""
    hit = R.corrupted_entries(matrix(40, 9), corruption, 5)
    x = torch.where(hit, bad, 1.0)
    assert draw(x, corruption).isfinite().all()
    grad = ops.corrupt_backward(x, torch.tensor([5]), corruption.kind, corruption.params, 0)
    assert torch.equal(grad, torch.where(hit, 0.0, 1.0))


@EVERY
def test_operator_writes_to_no_input(corruption: Corruption):
    x, seed = matrix(), torch.tensor([5])
    out = ops.corrupt(x, seed, corruption.kind, corruption.params, 0)
    ops.corrupt_backward(x, seed, corruption.kind, corruption.params, 0)
    assert torch.equal(x, matrix()) and x._version == 0
    assert seed.item() == 5 and seed._version == 0
    assert out.data_ptr() != x.data_ptr()


@EVERY
def test_operator_takes_strided_rows(corruption: Corruption):
    wide = matrix(10, 9)
    for x in (wide[::2, 1:8], wide[:1, :7].expand(5, 7)):
        assert same_bits(draw(x, corruption), R.corrupt(x.contiguous(), corruption, 5))


# --- statistics -----------------------------------------------------------------------------------------

BIG = (1000, 1000)


def test_masking_zeroes_the_share_and_keeps_the_rest():
    x = matrix(*BIG) + 10.0
    out = draw(x, Masking(0.3))
    hit = out == 0.0
    assert hit.double().mean().item() == pytest.approx(0.3, abs=5.0 * math.sqrt(0.21 / x.numel()))
    assert torch.equal(out[~hit], x[~hit])


def test_gaussian_noise_has_its_deviation_and_no_mean():
    x = matrix(*BIG)
    noise = draw(x, Gaussian(0.7)) - x
    assert noise.mean().item() == pytest.approx(0.0, abs=5.0 * 0.7 / math.sqrt(x.numel()))
    assert noise.std().item() == pytest.approx(0.7, rel=5.0 / math.sqrt(2.0 * x.numel()))


def test_salt_and_pepper_fall_alike():
    x = matrix(*BIG)
    out = draw(x, SaltAndPepper(0.3, -50.0, 50.0))
    for value in (-50.0, 50.0):
        share = (out == value).double().mean().item()
        assert share == pytest.approx(0.15, abs=5.0 * math.sqrt(0.15 * 0.85 / x.numel()))
    kept = out.abs() < 50.0
    assert torch.equal(out[kept], x[kept])


def test_swap_takes_a_uniform_row_of_the_same_column():
    rows, columns = 100, 10_000
    x = torch.arange(rows)[:, None] * 1e5 + torch.arange(columns)
    out = draw(x.double(), Swap(0.3)).long()
    assert torch.equal(out % 100_000, torch.arange(columns).expand(rows, columns))
    moved = (out != x).double().mean().item()
    expected = 0.3 * (1.0 - 1.0 / rows)
    assert moved == pytest.approx(expected, abs=5.0 * math.sqrt(0.21 / out.numel()))
    sources = (out[out != x] // 100_000).bincount(minlength=rows).double()
    chi_square = ((sources - sources.mean()) ** 2 / sources.mean()).sum().item()
    assert abs(chi_square - (rows - 1)) < 5.0 * math.sqrt(2.0 * (rows - 1))


def test_corrupted_entries_are_those_that_change():
    x = matrix(200, 50) + 10.0
    for corruption in KINDS:
        changed = draw(x, corruption) != x
        hit = R.corrupted_entries(x, corruption, 5)
        assert not changed[~hit].any()
        assert changed[hit].double().mean() > 0.98


# --- the function ---------------------------------------------------------------------------------------


@EVERY
def test_function_draws_its_seed_from_torch(corruption: Corruption, seeded):
    x = matrix()
    seed = seeded(1)
    first, second = functional.corrupt(x, corruption), functional.corrupt(x, corruption)
    assert torch.equal(first, R.corrupt(x, corruption, seed))
    assert not torch.equal(first, second)


@EVERY
def test_function_draws_its_seed_from_a_generator(corruption: Corruption):
    x = matrix(20, 9)
    state = torch.get_rng_state()
    one, again, other = (
        functional.corrupt(x, corruption, generator=torch.Generator().manual_seed(n)) for n in (5, 5, 6)
    )
    assert torch.equal(one, again) and not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), state)


@EVERY
@pytest.mark.parametrize("shape", [(2, 3, 7), (7,), (0, 3, 7)], ids=str)
def test_leading_dimensions_are_rows(corruption: Corruption, shape: tuple[int, ...], seeded):
    x = matrix(math.prod(shape[:-1]), 7)
    seed = seeded(2)
    out = functional.corrupt(x.view(shape), corruption)
    assert out.shape == shape
    assert torch.equal(out.view(-1, 7) if x.numel() else out.view_as(x), R.corrupt(x, corruption, seed))


@EVERY
@pytest.mark.parametrize(
    "view", [lambda x: x.t(), lambda x: x[:, ::2], lambda x: x[::3]], ids=["transposed", "columns", "rows"]
)
def test_any_strides_are_taken(corruption: Corruption, view, seeded):
    x = view(matrix(9, 8))
    seed = seeded(3)
    assert same_bits(functional.corrupt(x, corruption), R.corrupt(x.contiguous(), corruption, seed))


def test_no_corruption_is_a_copy():
    x = matrix()
    out = functional.corrupt(x, None)
    assert torch.equal(out, x) and out.data_ptr() != x.data_ptr()


@EVERY
@pytest.mark.parametrize("upstream", ["random", "stride 0", "transposed"])
def test_gradient_is_that_of_the_reference(corruption: Corruption, upstream: str, seeded):
    seed = seeded(4)
    weights = {
        "random": matrix(),
        "stride 0": torch.ones((), dtype=torch.float64).expand(5, 7),
        "transposed": matrix(7, 5).t(),
    }[upstream]
    gradients = []
    for function in (functional.corrupt, lambda x, c: R.corrupt(x, c, seed)):
        x = (matrix() + 3.0).requires_grad_()
        out = function(x, corruption)
        gradients += torch.autograd.grad(out, x, weights)
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("p", [0.0, 1.0])
@pytest.mark.parametrize("cls", [Masking, SaltAndPepper, Swap])
def test_gradient_at_the_ends_is_that_of_the_reference(cls, p: float, seeded):
    seed = seeded(4)
    x = matrix().requires_grad_()
    (fused,) = torch.autograd.grad(functional.corrupt(x, cls(p)), x, matrix())
    (expected,) = torch.autograd.grad(R.corrupt(x, cls(p), seed), x, matrix(), materialize_grads=True)
    torch.testing.assert_close(fused, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("x", "corruption", "error", "message"),
    [
        (
            torch.zeros(2, 3, dtype=torch.int64),
            Masking(0.1),
            ValueError,
            "x: expected a floating-point tensor",
        ),
        (torch.zeros(()), Masking(0.1), ValueError, "x: expected at least one dimension"),
        ([[0.0]], Masking(0.1), TypeError, "x: expected a tensor, got list"),
        (torch.zeros(2, 3), "masking:0.1", ValueError, "corruption: expected Masking, .* got str"),
        (torch.zeros(2, 3), 0.1, ValueError, "corruption: expected Masking, .* got float"),
    ],
)
def test_wrong_arguments_are_named(x, corruption, error, message: str):
    with pytest.raises(error, match=message):
        functional.corrupt(x, corruption)


def test_emphasis_needs_no_random_numbers_of_its_own():
    """The weights of the loss come from the bits of the corruption, so nothing has to be stored."""
    x = matrix(200, 50) + 10.0
    hit = philox.random_bits(5, 200, 50, philox.STREAM_CORRUPTION, width=16) <= philox.threshold(0.3)
    assert torch.equal(hit, draw(x, Masking(0.3)) == 0.0)


def test_salt_and_pepper_values_are_those_of_the_dtype():
    corruption = SaltAndPepper(1.0, 0.1, 0.7)
    x = torch.zeros(3, 4, dtype=torch.float64)
    out = torch.cat([functional.corrupt(x, corruption), R.corrupt(x, corruption, 3)])
    assert set(out.flatten().tolist()) == {0.1, 0.7}
