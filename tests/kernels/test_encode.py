"""Encoding and its contractive penalty on kernels: values and every gradient."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fastae import functional
from fastae import reference as R
from fastae.activations import ACTIVATIONS
from tests.kernels.comparison import (
    STRIDED,
    Function,
    Tensors,
    assert_like_reference,
    constant_upstream,
    normal,
    outcome,
    random_upstream,
)
from tests.kernels.support import DEVICE, DTYPES, assert_accurate

EVERY = pytest.mark.parametrize("activation", ACTIVATIONS)
EVERY_DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=str)
SHAPE = (17, 19, 35)  # rows, features, units: two tiles a side, the second of them partial


def layer(rows: int, features: int, units: int) -> Tensors:
    """Pre-activations of size 1 to 3."""
    return {
        "x": normal(rows, features, seed=1),
        "weight": normal(units, features, size=2.0 / features**0.5, seed=2),
        "bias": normal(units, seed=3),
    }


def encoder(activation: str) -> tuple[Function, Function]:
    def ours(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensors:
        return {"code": functional.encode(x, weight, bias, activation)}

    def reference(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensors:
        return {"code": R.encode(x, weight, bias, activation)}

    return ours, reference


def contractive(activation: str, reduction: str = "none") -> tuple[Function, Function]:
    def ours(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensors:
        code, penalty = functional.contractive_encode(x, weight, bias, activation, reduction=reduction)
        return {"code": code, "penalty": penalty}

    def reference(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensors:
        rows = R.contractive_penalty(x, weight, bias, activation)
        penalty = {"none": lambda: rows, "mean": rows.mean, "sum": rows.sum}[reduction]()
        return {"code": R.encode(x, weight, bias, activation), "penalty": penalty}

    return ours, reference


def only(name: str, functions: tuple[Function, Function]) -> tuple[Function, ...]:
    """The functions with one of their outputs, so that no gradient reaches the other."""
    return tuple(lambda f=f, **tensors: {name: f(**tensors)[name]} for f in functions)


# --- activations ------------------------------------------------------------------------------------------


@EVERY
@EVERY_DTYPE
def test_code_is_the_reference(activation: str, dtype: torch.dtype, strategy: str):
    assert_like_reference(*encoder(activation), layer(*SHAPE), dtype)


@EVERY
@EVERY_DTYPE
def test_code_and_penalty_are_the_reference(activation: str, dtype: torch.dtype, strategy: str):
    assert_like_reference(*contractive(activation), layer(*SHAPE), dtype)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@EVERY_DTYPE
def test_reduced_penalty_is_the_reference(reduction: str, dtype: torch.dtype, strategy: str):
    assert_like_reference(*contractive("silu", reduction), layer(*SHAPE), dtype)


@pytest.mark.parametrize("reduction", ["none", "mean"])
@EVERY_DTYPE
def test_penalty_alone_has_its_gradients(reduction: str, dtype: torch.dtype, strategy: str):
    ours, reference = only("penalty", contractive("tanh", reduction))
    assert_like_reference(ours, reference, layer(*SHAPE), dtype)


def test_code_alone_has_its_gradients_beside_a_penalty(strategy: str):
    ours, reference = only("code", contractive("tanh"))
    assert_like_reference(ours, reference, layer(*SHAPE), torch.float32)


@EVERY_DTYPE
def test_penalty_of_sixteen_bit_layers_is_in_float32(dtype: torch.dtype):
    x, weight, bias = (t.to(DEVICE, dtype) for t in layer(3, 5, 4).values())
    code, penalty = functional.contractive_encode(x, weight, bias, reduction="none")
    assert code.dtype == dtype and penalty.dtype == torch.float32


# --- shapes -----------------------------------------------------------------------------------------------

SHAPES = [
    (1, 1, 1),
    (1, 37, 5),
    (7, 1, 5),
    (7, 5, 1),
    (13, 11, 7),
    (15, 15, 31),
    (16, 16, 32),
    (17, 17, 33),
    (17, 16, 31),
    (1, 67, 71),
    (53, 2, 3),
    (3, 130, 2),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_any_shape_is_the_reference(shape: tuple[int, int, int], strategy: str):
    assert_like_reference(*contractive("gelu"), layer(*shape), torch.float32)


@pytest.mark.parametrize("shape", [(70, 65, 131), (260, 40, 150)], ids=str)
@EVERY_DTYPE
def test_default_tiles_are_the_reference(shape: tuple[int, int, int], dtype: torch.dtype):
    assert_like_reference(*contractive("gelu_tanh"), layer(*shape), dtype)


@pytest.mark.parametrize("leading", [(0,), (0, 3), (2, 0)], ids=str)
def test_no_rows_have_no_penalty_and_no_gradient(leading: tuple[int, ...]):
    _, weight, bias = (t.to(DEVICE, torch.float32).requires_grad_() for t in layer(*SHAPE).values())
    x = torch.empty(*leading, SHAPE[1], device=DEVICE, requires_grad=True)
    code, penalty = functional.contractive_encode(x, weight, bias, "silu", reduction="none")
    assert code.shape == (*leading, SHAPE[2]) and penalty.shape == leading
    gradients = torch.autograd.grad(code.sum() + penalty.sum(), (x, weight, bias))
    assert gradients[0].shape == x.shape
    assert not any(gradient.any() for gradient in gradients)
    for reduction, check in (("sum", lambda t: t == 0.0), ("mean", torch.isnan)):
        assert check(functional.contractive_encode(x, weight, bias, reduction=reduction)[1])


@EVERY_DTYPE
def test_three_dimensions_are_rows(dtype: torch.dtype, strategy: str):
    x, weight, bias = (t.to(DEVICE, dtype).requires_grad_() for t in layer(18, 7, 6).values())
    results = []
    for given in (x, x.view(2, 9, 7)):
        code, penalty = functional.contractive_encode(given, weight, bias, "tanh", reduction="none")
        assert penalty.shape == given.shape[:-1]
        upstream = [random_upstream(code.view(18, 6)), random_upstream(penalty.view(18))]
        results.append(torch.autograd.grad((code.view(18, 6), penalty.view(18)), (x, weight, bias), upstream))
    for flat, shaped in zip(*results, strict=True):
        assert torch.equal(flat, shaped)


@pytest.mark.parametrize("activation", ["sigmoid", "gelu"])
def test_bias_may_be_absent(activation: str, strategy: str):
    tensors = {name: t for name, t in layer(*SHAPE).items() if name != "bias"}
    assert_like_reference(*contractive(activation), tensors, torch.float32)


# --- strides ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("view", STRIDED.values(), ids=STRIDED)
@pytest.mark.parametrize("place", ["x", "weight"])
def test_any_strides_are_taken(view: Callable[[Tensor], Tensor], place: str, strategy: str):
    ours, reference = contractive("sigmoid")

    def strided(**tensors: Tensor) -> Tensors:
        given = view(tensors[place])
        assert not given.is_contiguous()
        return ours(**{**tensors, place: given})

    assert_like_reference(strided, reference, layer(*SHAPE), torch.float32)


@EVERY_DTYPE
def test_weight_may_be_the_view_of_a_decoders(dtype: torch.dtype, strategy: str):
    x, weight, bias = layer(*SHAPE).values()
    ours, reference = (
        lambda x, decoder, bias, f=f: f(x=x, weight=decoder.t(), bias=bias) for f in contractive("gelu")
    )
    assert_like_reference(ours, reference, {"x": x, "decoder": weight.t(), "bias": bias}, dtype)


@pytest.mark.parametrize("outputs", ["code", "penalty", "both"])
def test_upstream_gradients_may_have_strides_of_zero(outputs: str, strategy: str):
    functions = contractive("tanh")
    ours, reference = functions if outputs == "both" else only(outputs, functions)
    assert_like_reference(ours, reference, layer(*SHAPE), torch.float32, upstream=constant_upstream)


@pytest.mark.parametrize("view", STRIDED.values(), ids=STRIDED)
def test_upstream_gradients_may_have_any_strides(view: Callable[[Tensor], Tensor], strategy: str):
    def upstream(like: Tensor) -> Tensor:
        gradient = random_upstream(like)
        return view(gradient) if like.dim() == 2 else torch.stack((gradient, gradient), 1)[:, 0]

    assert_like_reference(*contractive("silu"), layer(*SHAPE), torch.float32, upstream=upstream)


def test_sums_have_gradients(strategy: str):
    x, weight, bias = (t.to(DEVICE, torch.float32).requires_grad_() for t in layer(*SHAPE).values())
    code, penalty = functional.contractive_encode(x, weight, bias, "tanh", reduction="sum")
    summed = torch.autograd.grad(code.sum() + penalty, (x, weight, bias))
    code, penalty = functional.contractive_encode(x, weight, bias, "tanh", reduction="none")
    ones = torch.ones_like(code), torch.ones_like(penalty)
    for one, two in zip(summed, torch.autograd.grad((code, penalty), (x, weight, bias), ones), strict=True):
        assert torch.equal(one, two)


# --- special values ---------------------------------------------------------------------------------------


@EVERY
@EVERY_DTYPE
def test_saturated_units_are_the_reference(activation: str, dtype: torch.dtype):
    bias = torch.tensor([-100.0, 100.0, -30.0, 30.0, 0.0, -12.0, 12.0], dtype=torch.float64)
    tensors = {**layer(5, 3, 7), "bias": bias}
    # terms of size 1 cancel in the gradient to the bias, to a tenth
    assert_like_reference(*contractive(activation), tensors, dtype, units=32.0)


@EVERY
@pytest.mark.parametrize("place", [-100.0, -30.0, 30.0, 100.0])
def test_saturated_units_by_themselves_are_the_reference(activation: str, place: float):
    """Far from the scale of other units."""
    bias = torch.full((4,), place, dtype=torch.float64)
    assert_like_reference(*contractive(activation), {**layer(5, 3, 4), "bias": bias}, torch.float32)


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "silu"])
@pytest.mark.parametrize("place", [-1e20, 1e20])
def test_huge_units_are_the_reference_in_double_precision(activation: str, place: float):
    """Squares of them overflow, where PyTorch's own derivatives turn into nan."""
    tensors = {**layer(5, 3, 4), "bias": torch.full((4,), place, dtype=torch.float64)}
    tensors = {name: t.float() for name, t in tensors.items()}
    ours, reference = contractive(activation)
    actual = outcome(ours, tensors, torch.float32, DEVICE, random_upstream)
    exact = outcome(reference, tensors, torch.float64, torch.device("cpu"), random_upstream)
    for name, value in actual.items():
        right = exact[name].detach()
        assert_accurate(name, value.detach(), right, right.to(torch.float32))


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "elu", "selu", "softsign"])
@EVERY_DTYPE
def test_breakpoint_has_pytorchs_slope(activation: str, dtype: torch.dtype):
    """Half of the rows are 0, and so are their pre-activations."""
    tensors = layer(6, 5, 4)
    tensors["x"][::2] = 0.0
    tensors["bias"].zero_()
    assert_like_reference(*contractive(activation), tensors, dtype)


@EVERY
@EVERY_DTYPE
def test_infinite_and_undefined_values_spread_as_in_pytorch(activation: str, dtype: torch.dtype):
    """As in float64: PyTorch's own gelu of inf is nan in float32."""
    inf, nan = torch.inf, torch.nan
    x, weight, bias = (t.to(dtype) for t in layer(20, 7, 35).values())
    bias[[1, 2, 33]] = torch.tensor([inf, -inf, nan], dtype=dtype)
    x[5, 3], x[17, 6], x[18, 0] = nan, inf, -inf
    expected = R.encode(x, weight, bias, activation)
    exact = R.encode(x.double(), weight.double(), bias.double(), activation)
    code = functional.encode(x.to(DEVICE), weight.to(DEVICE), bias.to(DEVICE), activation).cpu()
    for check in (torch.isnan, torch.isposinf, torch.isneginf):
        assert torch.equal(check(code), check(exact))
    finite = exact.isfinite()
    assert_accurate("code", code[finite], exact[finite], expected[finite])


def test_undefined_row_keeps_to_itself(strategy: str):
    x, weight, bias = (t.to(DEVICE, torch.float32) for t in layer(*SHAPE).values())
    clean = functional.contractive_encode(x, weight, bias, "gelu", reduction="none")
    x[4, 2] = torch.nan
    for before, after in zip(
        clean, functional.contractive_encode(x, weight, bias, "gelu", reduction="none"), strict=True
    ):
        rest = torch.arange(len(x), device=DEVICE) != 4
        assert after[4].isnan().all()
        assert torch.equal(after[rest], before[rest])
