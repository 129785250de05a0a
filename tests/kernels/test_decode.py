"""The reconstruction loss on kernels: its value a row and every gradient."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fastae import functional
from fastae import reference as R
from fastae.activations import ACTIVATIONS
from fastae.losses import LOSSES
from tests.kernels.comparison import (
    STRIDED,
    Function,
    Tensors,
    assert_like_reference,
    constant_upstream,
    normal,
    random_upstream,
    uniform,
)
from tests.kernels.support import DEVICE, DTYPES, assert_accurate

EVERY_DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=str)
LOSS = pytest.mark.parametrize("loss", LOSSES)
SHAPE = (17, 19, 35)  # rows, units, features: two tiles of rows and of features, the second of them partial


def decoder(rows: int, units: int, features: int) -> Tensors:
    """Pre-activations of size 1 to 3; the target lies in [0, 1]."""
    return {
        "code": normal(rows, units, seed=1),
        "weight": normal(features, units, size=2.0 / units**0.5, seed=2),
        "bias": normal(features, seed=3),
        "target": uniform(rows, features, seed=4),
    }


def functions(
    loss: str,
    output_activation: str = "linear",
    reduction: str = "none",
    missing: bool = False,
    entry_weight: Tensor | None = None,
) -> tuple[Function, Function]:
    def ours(code: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None = None) -> Tensors:
        options = {"output_activation": output_activation, "reduction": reduction, "missing": missing}
        if entry_weight is not None:
            options["entry_weight"] = entry_weight.to(DEVICE)
        return {"loss": functional.reconstruction_loss(code, weight, bias, target, loss, **options)}

    def reference(code: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None = None) -> Tensors:
        rows = R.reconstruction_loss(
            code, weight, bias, target, loss, output_activation, missing, entry_weight
        )
        return {"loss": {"none": lambda: rows, "mean": rows.mean, "sum": rows.sum}[reduction]()}

    return ours, reference


# --- losses -----------------------------------------------------------------------------------------------


@LOSS
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@EVERY_DTYPE
def test_loss_is_the_reference(loss: str, reduction: str, dtype: torch.dtype, strategy: str):
    assert_like_reference(*functions(loss, reduction=reduction), decoder(*SHAPE), dtype)


@pytest.mark.parametrize(
    ("loss", "output_activation"), [*(("mse", f) for f in ACTIVATIONS), ("cosine", "gelu")]
)
@EVERY_DTYPE
def test_output_activation_is_the_reference(loss: str, output_activation: str, dtype: torch.dtype):
    assert_like_reference(*functions(loss, output_activation), decoder(*SHAPE), dtype)


@pytest.mark.parametrize("zeros", ["code", "target", "both"])
def test_cosine_of_rows_of_zeros_is_the_reference(zeros: str):
    tensors = {name: t for name, t in decoder(*SHAPE).items() if name != "bias"}
    for name in ("code", "target"):
        if zeros in (name, "both"):
            tensors[name][::2] = 0.0
    assert_like_reference(*functions("cosine", reduction="mean"), tensors, torch.float32)


@LOSS
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_missing_entries_are_left_out(loss: str, reduction: str, strategy: str):
    """Also where the loss of the entry would not be a number."""
    tensors = decoder(*SHAPE)
    tensors["target"][::2, 1::3] = torch.nan
    assert_like_reference(*functions(loss, reduction=reduction, missing=True), tensors, torch.float32)


@LOSS
@pytest.mark.parametrize("form", [(1, SHAPE[2]), (SHAPE[0], 1), (SHAPE[0], SHAPE[2])], ids=str)
def test_entries_are_weighed(loss: str, form: tuple[int, int], strategy: str):
    """Those of weight 0 are left out, also where their loss would not be a number."""
    if loss == "cosine" and form[1] == 1:
        return  # refused
    tensors, weight = decoder(*SHAPE), uniform(*form, seed=5)
    weight[weight < 0.3] = 0.0
    tensors["target"].masked_fill_(weight == 0.0, torch.nan)
    reduction = "none" if form[0] == 1 else "mean"
    assert_like_reference(*functions(loss, reduction=reduction, entry_weight=weight), tensors, torch.float32)


@LOSS
def test_bias_may_be_absent(loss: str, strategy: str):
    tensors = {name: t for name, t in decoder(*SHAPE).items() if name != "bias"}
    assert_like_reference(*functions(loss), tensors, torch.float32)


@LOSS
@EVERY_DTYPE
def test_loss_is_in_float32(loss: str, dtype: torch.dtype):
    code, weight, bias, target = (t.to(DEVICE, dtype) for t in decoder(3, 5, 4).values())
    assert functional.reconstruction_loss(code, weight, bias, target, loss).dtype == torch.float32


@LOSS
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_target_may_be_wider_than_the_code(loss: str, dtype: torch.dtype, strategy: str):
    """As under autocast: the target and its gradient stay in float32."""
    tensors = {name: t.to(dtype) for name, t in decoder(*SHAPE).items()}
    target = decoder(*SHAPE)["target"].float()

    def run(function: Function, device: torch.device, dtype: torch.dtype, wide: torch.dtype):
        leaves = {name: t.to(device, dtype).requires_grad_() for name, t in tensors.items()}
        leaves["target"] = target.to(device, wide).requires_grad_()
        rows = function(**leaves)["loss"]
        return rows, torch.autograd.grad(rows, leaves.values(), random_upstream(rows))

    ours, reference = functions(loss)
    with torch.autocast(DEVICE.type, dtype):
        rows, gradients = run(ours, DEVICE, dtype, torch.float32)
    exact, exact_gradients = run(reference, torch.device("cpu"), torch.float64, torch.float64)
    assert gradients[-1].dtype == torch.float32
    units = 8.0 * torch.finfo(dtype).eps / torch.finfo(torch.float32).eps
    assert_accurate("loss", rows.detach(), exact.detach(), exact.detach(), units=units)
    for name, gradient, right in zip([*tensors], gradients, exact_gradients, strict=True):
        wider = torch.finfo(dtype).eps / torch.finfo(gradient.dtype).eps
        assert_accurate(f"d {name}", gradient, right, right, units=8.0 * wider)


# --- shapes and strides -----------------------------------------------------------------------------------

SHAPES = [
    (1, 1, 1),
    (1, 5, 37),
    (7, 1, 5),
    (7, 5, 1),
    (13, 7, 11),
    (15, 15, 31),
    (16, 16, 32),
    (17, 17, 33),
    (31, 3, 65),
    (2, 47, 3),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_any_shape_is_the_reference(shape: tuple[int, int, int], strategy: str):
    assert_like_reference(*functions("bce"), decoder(*shape), torch.float32)


@LOSS
@EVERY_DTYPE
def test_default_tiles_are_the_reference(loss: str, dtype: torch.dtype):
    assert_like_reference(*functions(loss), decoder(70, 131, 140), dtype)


@LOSS
@pytest.mark.parametrize("leading", [(0,), (0, 3)], ids=str)
def test_no_rows_have_no_loss_and_no_gradient(loss: str, leading: tuple[int, ...], strategy: str):
    tensors = {name: t.to(DEVICE, torch.float32).requires_grad_() for name, t in decoder(*SHAPE).items()}
    for name, columns in (("code", SHAPE[1]), ("target", SHAPE[2])):
        tensors[name] = torch.empty(*leading, columns, device=DEVICE, requires_grad=True)
    for reduction, shape in (("none", leading), ("sum", ()), ("mean", ())):
        value = functional.reconstruction_loss(**tensors, loss=loss, reduction=reduction)
        assert value.shape == shape
        assert value.isnan() if reduction == "mean" else not value.any()
        for gradient, leaf in zip(
            torch.autograd.grad(value.sum(), tensors.values()), tensors.values(), strict=True
        ):
            assert gradient.shape == leaf.shape and not gradient.any()


@LOSS
def test_three_dimensions_are_rows(loss: str, strategy: str):
    code, weight, bias, target = (t.to(DEVICE, torch.float32) for t in decoder(18, 7, 6).values())
    flat = functional.reconstruction_loss(code, weight, bias, target, loss, reduction="none")
    code, target = code.view(2, 9, 7), target.view(2, 9, 6)
    shaped = functional.reconstruction_loss(code, weight, bias, target, loss, reduction="none")
    assert torch.equal(shaped, flat.view(2, 9))


@pytest.mark.parametrize("view", STRIDED.values(), ids=STRIDED)
@pytest.mark.parametrize("place", ["code", "weight", "target"])
def test_any_strides_are_taken(view: Callable[[Tensor], Tensor], place: str, strategy: str):
    ours, reference = functions("mse", "tanh")

    def strided(**tensors: Tensor) -> Tensors:
        given = view(tensors[place])
        assert not given.is_contiguous()
        return ours(**{**tensors, place: given})

    assert_like_reference(strided, reference, decoder(*SHAPE), torch.float32)


@LOSS
@EVERY_DTYPE
def test_weight_may_be_the_view_of_an_encoders(loss: str, dtype: torch.dtype, strategy: str):
    code, weight, bias, target = decoder(*SHAPE).values()
    tied, reference = (
        lambda code, encoder, bias, target, f=f: f(code=code, weight=encoder.t(), bias=bias, target=target)
        for f in functions(loss)
    )
    tensors = {"code": code, "encoder": weight.t().contiguous(), "bias": bias, "target": target}
    assert_like_reference(tied, reference, tensors, dtype)


@LOSS
@pytest.mark.parametrize("reduction", ["none", "sum"])
def test_upstream_gradients_may_have_strides_of_zero(loss: str, reduction: str, strategy: str):
    tensors, pair = decoder(*SHAPE), functions(loss, reduction=reduction)
    assert_like_reference(*pair, tensors, torch.float32, upstream=constant_upstream)


@LOSS
def test_upstream_gradients_may_be_every_second_number(loss: str, strategy: str):
    def upstream(like: Tensor) -> Tensor:
        return random_upstream(like).repeat_interleave(2)[::2]

    assert_like_reference(*functions(loss), decoder(*SHAPE), torch.float32, upstream=upstream)


# --- special values ---------------------------------------------------------------------------------------

CODES = torch.zeros(5, 3, dtype=torch.float64)


def saturated(*sizes: float, target: Tensor | None = None) -> Tensors:
    """Logits of plus and minus the sizes in every row, and 0."""
    logits = torch.tensor([0.0, *sizes, *(-size for size in sizes)], dtype=torch.float64)
    tensors = decoder(5, 3, len(logits))
    return {
        **tensors,
        "code": CODES,
        "bias": logits,
        "target": tensors["target"] if target is None else target,
    }


@LOSS
@EVERY_DTYPE
def test_saturated_logits_are_the_reference(loss: str, dtype: torch.dtype):
    assert_like_reference(*functions(loss), saturated(30.0, 100.0), dtype)


@LOSS
def test_huge_logits_are_the_reference(loss: str):
    assert_like_reference(*functions(loss), saturated(1e4), torch.float32)


@pytest.mark.parametrize("size", [5.0, 12.0, 20.0, 30.0, 80.0])
@pytest.mark.parametrize("target", [0.0, 1.0])
def test_loss_of_a_certain_and_right_logit_keeps_its_digits(size: float, target: float):
    """The cross-entropy is log(1 + e^-size), down to the smallest floats."""
    bias = torch.full((1,), size if target else -size)
    tensors = {**decoder(5, 3, 1), "code": CODES, "bias": bias, "target": torch.full((5, 1), target)}
    rows, pytorch = (
        function(**{name: t.to(device, torch.float32) for name, t in tensors.items()})["loss"]
        for function, device in zip(functions("bce"), (DEVICE, "cpu"), strict=True)
    )
    exact = torch.log1p(torch.exp(torch.full((5,), -size, dtype=torch.float64)))
    assert_accurate("loss", rows, exact, pytorch, units=8.0 * max(1.0, size / 5.0))


@pytest.mark.parametrize("output_activation", ["linear", "sigmoid", "relu", "gelu"])
@EVERY_DTYPE
def test_targets_may_lie_anywhere_for_mse(output_activation: str, dtype: torch.dtype):
    tensors = {**decoder(*SHAPE), "target": normal(SHAPE[0], SHAPE[2], size=5.0, seed=5)}
    assert_like_reference(*functions("mse", output_activation), tensors, dtype)


@LOSS
def test_targets_may_be_certain(loss: str):
    tensors = decoder(*SHAPE)
    tensors = {**tensors, "target": tensors["target"].round()}
    assert set(tensors["target"].unique().tolist()) == {0.0, 1.0}
    assert_like_reference(*functions(loss), tensors, torch.float32)


@LOSS
def test_undefined_row_keeps_to_itself(loss: str, strategy: str):
    code, weight, bias, target = (t.to(DEVICE, torch.float32) for t in decoder(*SHAPE).values())
    clean = functional.reconstruction_loss(code, weight, bias, target, loss, reduction="none")
    code[4, 2], target[16, 34] = torch.nan, torch.nan
    rows = functional.reconstruction_loss(code, weight, bias, target, loss, reduction="none")
    undefined = torch.tensor([4, 16], device=DEVICE)
    rest = torch.ones(len(rows), dtype=torch.bool, device=DEVICE).index_fill(0, undefined, False)
    assert rows[undefined].isnan().all()
    assert torch.equal(rows[rest], clean[rest])
