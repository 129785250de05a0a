"""The table of activations against PyTorch's autograd and plain mathematics."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fastae.activations import ACTIVATIONS, Activation, get_activation

EVERY = pytest.mark.parametrize("f", ACTIVATIONS.values(), ids=ACTIVATIONS)
BOTH_DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)

SELU_SCALE, SELU_ALPHA = 1.0507009873554804934, 1.6732632423543772848
MATHEMATICS = {
    "linear": lambda z: z,
    "sigmoid": lambda z: 1.0 / (1.0 + math.exp(-z)),
    "tanh": math.tanh,
    "relu": lambda z: max(z, 0.0),
    "leaky_relu": lambda z: max(z, 0.01 * z),
    "softplus": lambda z: math.log1p(math.exp(z)),
    "elu": lambda z: z if z > 0 else math.expm1(z),
    "selu": lambda z: SELU_SCALE * (z if z > 0 else SELU_ALPHA * math.expm1(z)),
    "gelu": lambda z: 0.5 * z * math.erfc(-z / math.sqrt(2.0)),
    "gelu_tanh": lambda z: 0.5 * z * (1.0 + math.tanh(math.sqrt(2.0 / math.pi) * (z + 0.044715 * z**3))),
    "silu": lambda z: z / (1.0 + math.exp(-z)),
    "softsign": lambda z: z / (1.0 + abs(z)),
    "mish": lambda z: z * math.tanh(math.log1p(math.exp(z))),
    "hardtanh": lambda z: min(max(z, -1.0), 1.0),
    "relu6": lambda z: min(max(z, 0.0), 6.0),
}


def points(dtype: torch.dtype = torch.float64) -> Tensor:
    """Random, saturated, and the breakpoints of the piecewise ones."""
    ordinary = 3.0 * torch.randn(500, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return torch.cat((ordinary, torch.tensor([-80.0, -30.0, -1.0, 0.0, 1.0, 6.0, 30.0, 80.0]))).to(dtype)


def slopes(f: Activation, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """h, s and t by the table, with z only where the table says it is needed."""
    h = f.function(z)
    seen = z if f.needs_preactivation else None
    s = f.derivative(h, seen)
    return h, s, torch.zeros_like(z) if f.second is None else f.second(h, s, seen)


def autograd_slopes(f: Activation, z: Tensor) -> tuple[Tensor, Tensor]:
    z = z.clone().requires_grad_()
    (s,) = torch.autograd.grad(f.function(z).sum(), z, create_graph=True)
    if not s.requires_grad:
        return s, torch.zeros_like(s)
    (t,) = torch.autograd.grad(s.sum(), z, allow_unused=True, materialize_grads=True)
    return s.detach(), t


def test_the_promised_names_are_there():
    assert list(ACTIVATIONS) == list(MATHEMATICS)


@EVERY
def test_function_is_the_named_one_to_float64_accuracy(f: Activation):
    z = torch.linspace(-6.0, 6.0, 201, dtype=torch.float64)
    expected = torch.tensor([MATHEMATICS[f.name](v) for v in z.tolist()], dtype=torch.float64)
    torch.testing.assert_close(f.function(z), expected, rtol=1e-13, atol=1e-15)


@EVERY
def test_derivative_and_second_are_those_of_autograd(f: Activation):
    z = points()
    _, s, t = slopes(f, z)
    expected_s, expected_t = autograd_slopes(f, z)
    torch.testing.assert_close(s, expected_s, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(t, expected_t, rtol=1e-12, atol=1e-13)


@EVERY
def test_autograd_through_the_derivative_gives_the_second(f: Activation):
    """The fused gradient uses the reference's derivative, at the breakpoint as well."""
    z = points().requires_grad_()
    s = f.derivative(f.function(z), z)
    through = torch.zeros_like(z)
    if s.requires_grad:
        (through,) = torch.autograd.grad(s.sum(), z, allow_unused=True, materialize_grads=True)
    torch.testing.assert_close(slopes(f, z.detach())[2], through, rtol=1e-12, atol=1e-13)


@EVERY
@BOTH_DTYPES
def test_dtype_is_kept(f: Activation, dtype: torch.dtype):
    assert {part.dtype for part in slopes(f, points(dtype))} == {dtype}


@EVERY
@BOTH_DTYPES
def test_nothing_overflows_for_large_arguments(f: Activation, dtype: torch.dtype):
    size = torch.logspace(1, 6, 60, dtype=torch.float64).to(dtype)
    for part in slopes(f, torch.cat((size, -size))):
        assert part.isfinite().all()


@EVERY
@BOTH_DTYPES
def test_slopes_are_bounded_and_saturate(f: Activation, dtype: torch.dtype):
    _, s, t = slopes(f, points(dtype))
    assert s.min() >= -0.2 and s.max() <= 1.76
    assert t.abs().max() <= 2.0
    _, s, t = slopes(f, torch.tensor([-1e5, 1e5], dtype=dtype))
    ends = {"linear": (1, 1), "leaky_relu": (0.01, 1), "selu": (0, SELU_SCALE)}
    expected = ends.get(f.name, (0, 1 if math.isinf(f.bounds[1]) else 0))
    torch.testing.assert_close(s, torch.tensor(expected, dtype=dtype), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(t, torch.zeros_like(t), rtol=0, atol=1e-6)


@pytest.mark.parametrize("f", [f for f in ACTIVATIONS.values() if f.inplace], ids=lambda f: f.name)
@BOTH_DTYPES
def test_inplace_overwrites_with_the_function(f: Activation, dtype: torch.dtype):
    z = points(dtype)
    expected = f.function(z.clone())
    result = f.inplace(z)
    assert result.data_ptr() == z.data_ptr()
    assert torch.equal(result, expected)


@EVERY
def test_no_part_writes_to_or_shares_memory_with_its_arguments(f: Activation):
    z = points()
    h = f.function(z)
    s = f.derivative(h, z)
    t = s.clone() if f.second is None else f.second(h, s, z)
    assert len({part.data_ptr() for part in (z, h, s, t)}) == 4
    assert [part._version for part in (z, h, s)] == [0, 0, 0]
    assert torch.equal(z, points())


@EVERY
@BOTH_DTYPES
def test_bounds_hold_and_finite_ones_are_tight(f: Activation, dtype: torch.dtype):
    h = f.function(torch.cat((points(dtype), torch.tensor([-1e5, 1e5], dtype=dtype))))
    low, high = torch.tensor(f.bounds, dtype=dtype)
    assert (h >= low).all() and (h <= high).all()
    for bound, extreme in ((low, h.min()), (high, h.max())):
        assert bound.isinf() or abs(bound - extreme) < 1e-4


def test_only_sigmoid_codes_lie_in_the_unit_interval():
    assert [name for name, f in ACTIVATIONS.items() if f.in_unit_interval] == ["sigmoid"]


def test_breakpoint_slopes_are_those_of_the_left_side():
    zero = torch.zeros(1, dtype=torch.float64)
    left = {"relu": 0.0, "leaky_relu": 0.01, "elu": 1.0, "selu": SELU_SCALE * SELU_ALPHA}
    assert {name: slopes(ACTIVATIONS[name], zero)[1].item() for name in left} == pytest.approx(
        left, rel=1e-15
    )


@pytest.mark.parametrize("name", ["Sigmoid", "", None, ["relu"]])
def test_unknown_name_is_refused_with_the_known_ones_listed(name):
    with pytest.raises(ValueError, match=r"output_activation: .* not one of linear, sigmoid, .*, relu6"):
        get_activation(name, "output_activation")
    with pytest.raises(ValueError, match=r"^activation: "):
        get_activation(name)
