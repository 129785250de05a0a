"""Saturated, active and dead units and the sparsity of codes, by hand."""

from __future__ import annotations

import math

import pytest
import torch

from fastae.activations import ACTIVATIONS
from fastae.diagnostics import active_share, code_sparsity, dead_units, saturated, saturated_share


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_saturated_is_a_slope_of_at_most_19_percent_of_that_at_0(activation, plain):
    z = torch.linspace(-6.0, 6.0, 2001, dtype=torch.float64)[:, None]
    slope = torch.func.vmap(torch.func.grad(lambda value: plain[activation](value)))(z[:, 0])
    at_0 = torch.func.grad(plain[activation])(torch.zeros((), dtype=torch.float64))
    expected = (slope.abs() <= 0.19 * at_0)[:, None]
    code = plain[activation](z)
    assert torch.equal(saturated(code, activation, preactivation=z), expected)
    if ACTIVATIONS[activation].code_tells_slope:
        assert torch.equal(saturated(code, activation), expected)
    share = saturated_share(code, activation, preactivation=z)
    torch.testing.assert_close(share, expected.double().mean(0))
    assert activation in ("linear", "leaky_relu") or 0.0 < share.item() < 1.0


def test_the_papers_criterion_for_the_sigmoid():
    code = torch.rand(500, 7, generator=torch.Generator().manual_seed(0))
    expected = (code < 0.05) | (code > 0.95)
    assert torch.equal(saturated(code), expected)
    torch.testing.assert_close(saturated_share(code), expected.float().mean(0))
    leading = saturated_share(code.view(5, 100, 7))
    torch.testing.assert_close(leading, expected.float().mean(0))


def test_active_share_counts_codes_beyond_the_threshold():
    code = torch.tensor([[0.0, 2.0, -1.0], [0.0, 0.0, 0.5], [0.0, 3.0, -0.5], [0.0, 0.1, 0.0]])
    torch.testing.assert_close(active_share(code), torch.tensor([0.0, 0.75, 0.75]))
    torch.testing.assert_close(active_share(code, 0.5), torch.tensor([0.0, 0.5, 0.25]))


def test_dead_units_move_less_than_the_tolerance():
    code = torch.tensor([[0.5, 0.0, 1.0], [0.5, 0.0009, 1.0], [0.5, 0.0005, 1.5]])
    assert dead_units(code).tolist() == [True, True, False]
    assert dead_units(code, 1e-4).tolist() == [True, False, False]
    assert dead_units(code, 1.0).tolist() == [True, True, True]
    assert dead_units(code[:1]).all()


def test_sparsity_of_codes():
    code = torch.tensor(
        [[0, 0, -3, 0], [2, -2, 2, 2], [0, 0, 0, 0], [1, 1, 0, 0], [3, 4, 0, 0]], dtype=torch.float64
    )
    expected = [1.0, 0.0, 1.0, (2 - math.sqrt(2)) / 1, (2 - 7 / 5) / 1]
    torch.testing.assert_close(code_sparsity(code), torch.tensor(expected, dtype=torch.float64))
    # a multiple of a code is as sparse, down to what a float can hold
    for factor in (1e-300, 1e-160, 1e160, 1e300):
        torch.testing.assert_close(code_sparsity(factor * code), code_sparsity(code))
    assert code_sparsity(torch.tensor([[0.0], [2.0]])).tolist() == [1.0, 1.0]
    assert code_sparsity(code.view(5, 1, 4)).shape == (5, 1)


def test_no_number_is_no_figure():
    code = torch.tensor([[0.5, math.nan, 0.0], [0.5, 0.5, 0.0], [0.5, 0.5, math.inf]])
    for share in (active_share(code), saturated_share(code)):
        assert share.isnan().tolist() == [False, True, False]
    assert code_sparsity(code).isnan().tolist() == [True, False, True]
    assert code_sparsity(torch.tensor([[math.nan], [math.inf], [0.0], [2.0]])).isnan().tolist() == [
        True,
        True,
        False,
        False,
    ]
    assert dead_units(code).tolist() == [True, False, False]


def test_counts_go_beyond_what_float32_counts_one_by_one():
    code = torch.ones(1, 1).expand(2**24 + 3, 1)
    assert active_share(code).item() == 1.0
    mixed = torch.cat([torch.ones(2**24 + 2), torch.zeros(2)])[:, None]
    assert active_share(mixed).item() == torch.tensor((2**24 + 2) / (2**24 + 4)).item()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_results_are_at_least_float32(dtype):
    code = torch.rand(6, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    for result in (saturated_share(code), active_share(code), code_sparsity(code)):
        assert result.dtype == wide
    torch.testing.assert_close(code_sparsity(code), code_sparsity(code.to(wide)))


def test_codes_without_rows():
    empty = torch.zeros(0, 4)
    assert code_sparsity(empty).shape == (0,)
    assert saturated(empty).shape == (0, 4)
    for function in (saturated_share, active_share, dead_units):
        with pytest.raises(ValueError, match=r"^code: needs at least 1 row, got shape \[0, 4\]"):
            function(empty)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda c: saturated(c, "gelu"), "preactivation: needed, the slope of gelu"),
        (lambda c: saturated_share(c, "silu"), "preactivation: needed, the slope of silu"),
        (lambda c: saturated(c, "gelu", preactivation=c[:2]), r"preactivation: expected shape \[3, 4\]"),
        (lambda c: saturated(c, "swish"), "activation: 'swish' is not one of"),
        (lambda c: saturated(c.long()), "code: expected a floating-point tensor"),
        (lambda c: active_share(c, -1.0), "threshold: must be >= 0, got -1.0"),
        (lambda c: active_share(c, math.nan), "threshold: must be >= 0, got nan"),
        (lambda c: dead_units(c, 0.0), "tolerance: must be > 0, got 0.0"),
        (lambda c: code_sparsity(torch.tensor(1.0)), "code: expected at least one dimension"),
    ],
)
def test_what_does_not_fit_is_named(call, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        call(torch.rand(3, 4))
