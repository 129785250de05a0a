"""The kernels' activations and losses against the formulas in float64, entry by entry."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import pytest
import torch
import triton
import triton.language as tl
from fastae_kernels.device import activations as kernels
from fastae_kernels.device import losses
from fastae_kernels.device.losses import LOSSES
from torch import Tensor

from fastae import reference
from fastae.activations import ACTIVATIONS, softplus
from fastae.losses import LOSSES as LOSS_NAMES
from fastae.losses import get_loss, log_softplus
from tests.kernels.support import DEVICE, ON_GPU

pytestmark = pytest.mark.filterwarnings(
    "ignore:(overflow|invalid value) encountered:RuntimeWarning"
)  # NumPy's
BLOCK = 1024 if ON_GPU else 8192
UNITS = 4.0
"""The exponential, logarithm and reciprocal of a GPU have errors of their own (:func:`elementary`)."""
TOLERANCE = 1.2e-6 * UNITS
NAMES = pytest.mark.parametrize("name", ACTIVATIONS)


class Functions(NamedTuple):
    """What kernels take of an activation: Triton 3.6's interpreter takes no tuple with a bool."""

    function: Any
    slope: Any
    second: Any
    parameter: float = 0.0  # of a loss


@triton.jit
def evaluate(z, code, slope, second, N, f, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(z + i, mask=i < N, other=0.0)
    h = f.function(x)
    s = f.slope(h, x)
    tl.store(code + i, h, mask=i < N)
    tl.store(slope + i, s, mask=i < N)
    if f.second is not None:
        # times a tensor, as in every epilogue: the interpreter stores no product that a constant began
        tl.store(second + i, tl.full((BLOCK,), 1.0, tl.float32) * f.second(h, s, x), mask=i < N)


@triton.jit
def evaluate_loss(a, x, value, grad, target_grad, N, loss, f, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    z = tl.load(a + i, mask=i < N, other=0.0)
    target = tl.load(x + i, mask=i < N, other=0.0)
    one = tl.full((BLOCK,), 1.0, tl.float32)
    entry, slope = loss.entry(z, target, f)
    tl.store(value + i, one * entry, mask=i < N)
    tl.store(grad + i, one * slope, mask=i < N)
    tl.store(target_grad + i, one * loss.target_gradient(z, target, f), mask=i < N)


def functions(name: str) -> Functions:
    return Functions(*kernels.ACTIVATIONS[name][:3])


def kernel_values(name: str, z: Tensor) -> list[Tensor]:
    """h, s and t in float64; t is 0 where the table has none."""
    z = z.to(DEVICE)
    values = [torch.zeros_like(z) for _ in range(3)]
    evaluate[(triton.cdiv(len(z), BLOCK),)](z, *values, len(z), functions(name), BLOCK)
    return [value.cpu().double() for value in values]


def exact_values(name: str, z: Tensor) -> list[Tensor]:
    f, z = ACTIVATIONS[name], z.double()
    h = f.function(z)
    s = f.derivative(h, z)
    return [h, s, torch.zeros_like(z) if f.second is None else f.second(h, s, z)]


def symmetric(values: Tensor) -> Tensor:
    return torch.cat((-values.flip(0), torch.zeros(1), values))


WIDE = symmetric(torch.cat((torch.logspace(-8, 0, 2_001), torch.linspace(0.001, 100.0, 30_001))))
NEAR = symmetric(torch.logspace(-8, math.log10(0.5), 4_001))
FAR = symmetric(torch.tensor([1e2, 1e3, 1e4, 1e10, 1e20, 1e30, 3e38]))
INFINITE = torch.tensor([-math.inf, math.inf])


# --- a GPU's elementary functions -----------------------------------------------------------------------


@triton.jit
def off_by(value, x, SIZE):
    """``value`` off by SIZE in a direction that depends on x's last bit; nothing below the normal numbers."""
    direction = tl.where((x.to(tl.int32, bitcast=True) & 1) == 0, 1.0, -1.0)
    near = tl.where(tl.abs(value) < 1.1754944e-38, 0.0, value + direction * SIZE)
    return tl.where(tl.abs(value) < float("inf"), near, value)


@triton.jit
def rough_exp(z):
    value = tl.exp(z)
    return off_by(value, z, value * 2.0**-22)


@triton.jit
def rough_log(x):
    value = tl.log(x)
    return off_by(value, x, tl.maximum(tl.abs(value), 1.0) * (2.0**-22 * 0.6931472))


@triton.jit
def rough_reciprocal(x):
    value = 1.0 / x
    return off_by(value, x, value * 2.0**-23)


@pytest.fixture(autouse=True, params=["exact", "rough"])
def elementary(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Elementary functions as they are, and, in the interpreter, off by as much as the PTX manual allows."""
    if request.param == "exact":
        return
    if ON_GPU:
        pytest.skip("a GPU has its own")
    for module in (kernels, losses):
        for name, function in {"exp": rough_exp, "log": rough_log, "reciprocal": rough_reciprocal}.items():
            monkeypatch.setattr(module, name, function, raising=False)


# --- the table ------------------------------------------------------------------------------------------


def test_kernels_have_every_activation_and_loss():
    assert kernels.ACTIVATIONS.keys() == ACTIVATIONS.keys()
    assert LOSSES.keys() == set(LOSS_NAMES)


@NAMES
def test_kernels_read_and_omit_what_the_formulas_do(name: str):
    assert kernels.ACTIVATIONS[name].preactivation == ACTIVATIONS[name].needs_preactivation
    assert (kernels.ACTIVATIONS[name].second is None) == (ACTIVATIONS[name].second is None)


# --- activations ----------------------------------------------------------------------------------------


def own_tolerance(name: str, part: str) -> float:
    """1 - tanh(u)^2 loses digits that gelu_tanh's second derivative multiplies by up to 60."""
    return 8e-6 * UNITS if (name, part) == ("gelu_tanh", "second") else TOLERANCE


@NAMES
def test_function_slope_and_second_derivative_are_accurate(name: str):
    for part, value, exact in zip(
        ("function", "slope", "second"), kernel_values(name, WIDE), exact_values(name, WIDE), strict=True
    ):
        error = (value - exact).abs() / exact.abs().clamp_min(1.0)
        worst = error.argmax()
        assert error[worst] <= own_tolerance(name, part), f"{part} at {WIDE[worst]}: {error[worst]:.3g}"


@NAMES
def test_function_and_slope_keep_their_digits_near_zero(name: str):
    """Relative errors: a difference with 1 would lose the digits of tanh, elu and selu."""
    values, exacts = kernel_values(name, NEAR)[:2], exact_values(name, NEAR)[:2]
    for part, value, exact in zip(("function", "slope"), values, exacts, strict=True):
        error = ((value - exact).abs() / exact.abs())[exact != 0.0]
        assert error.max() <= 2e-6 * UNITS, f"{part}: {error.max():.3g}"
        assert (value[exact == 0.0] == 0.0).all()


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("sigmoid", 0),
        ("sigmoid", 1),
        ("softplus", 0),
        ("softplus", 1),
        ("elu", 1),
        ("selu", 1),
        ("softsign", 1),
    ],
)
def test_small_values_far_to_the_left_keep_their_digits(name: str, part: int):
    z = torch.linspace(-80.0, 0.0, 8_001)
    torch.testing.assert_close(
        kernel_values(name, z)[part], exact_values(name, z)[part], rtol=2e-6 * (10.0 * UNITS - 9.0), atol=0.0
    )


@NAMES
def test_breakpoint_zero_belongs_to_the_left(name: str):
    for zero in (torch.zeros(1), -torch.zeros(1)):
        torch.testing.assert_close(
            kernel_values(name, zero), exact_values(name, zero), rtol=1e-6, atol=1e-7 * UNITS
        )


@NAMES
def test_values_far_out_are_those_of_pytorch(name: str):
    """No overflow on the way to a finite result, and infinity where PyTorch has a limit there."""
    z = torch.cat((INFINITE, FAR))
    for part, value, exact in zip(
        ("function", "slope", "second"), kernel_values(name, z), exact_values(name, z), strict=True
    ):
        defined = ~exact.isnan()
        torch.testing.assert_close(
            value[defined],
            exact[defined],
            rtol=1e-6 * UNITS,
            atol=1e-6,
            msg=lambda text, p=part: f"{p}: {text}",
        )


@NAMES
def test_nan_stays_nan(name: str):
    assert kernel_values(name, torch.tensor([math.nan]))[0].isnan().all()


# --- losses ---------------------------------------------------------------------------------------------

LOGITS = symmetric(torch.cat((torch.logspace(-6, 0, 301), torch.linspace(0.01, 100.0, 3_001))))


def kernel_losses(loss: str, output_activation: str, a: Tensor, x: Tensor) -> list[Tensor]:
    """The loss of each entry and its gradients to a and x, in float64."""
    a, x = a.to(DEVICE), x.to(DEVICE)
    values = [torch.full_like(a, math.nan) for _ in range(3)]
    f = functions(output_activation)._replace(parameter=get_loss(loss).parameter)
    arguments = len(a), LOSSES[loss.partition(":")[0]], f, BLOCK
    evaluate_loss[(triton.cdiv(len(a), BLOCK),)](a, x, *values, *arguments)
    return [value.cpu().double() for value in values]


def exact_losses(loss: str, output_activation: str, a: Tensor, x: Tensor) -> list[Tensor]:
    a, x = a.double().requires_grad_(), x.double().requires_grad_()
    value = reference.reconstruction_entries(a, x, loss, output_activation)
    return [value.detach(), *torch.autograd.grad(value.sum(), (a, x))]


def assert_loss_is_exact(
    loss: str, output_activation: str, targets: tuple[float, ...] = (0.0, 0.3, 0.999, 1.0)
) -> None:
    for target in targets:
        x = torch.full_like(LOGITS, target)
        values = kernel_losses(loss, output_activation, LOGITS, x)
        exacts = exact_losses(loss, output_activation, LOGITS, x)
        sizes = list(exacts)
        if get_loss(loss).link is not None:  # a difference of terms
            sizes[0] = LOGITS.double().abs() + target * (1.0 + log_softplus(LOGITS.double()).abs())
        for part, value, exact, size in zip(("loss", "grad", "target"), values, exacts, sizes, strict=True):
            error = (value - exact).abs() / size.abs().clamp_min(1.0)
            assert error.max() <= 2.0 * TOLERANCE, f"{part} of {target}: {error.max():.3g}"


def test_bce_and_its_gradients_are_accurate():
    assert_loss_is_exact("bce", "linear")


@NAMES
def test_mse_and_its_gradients_are_accurate(name: str):
    assert_loss_is_exact("mse", name)


def test_huber_and_its_gradients_are_accurate():
    for loss, name in (("huber", "linear"), ("huber:0.3", "tanh")):
        assert_loss_is_exact(loss, name)


@pytest.mark.parametrize("loss", ["poisson", "negative_binomial", "negative_binomial:100"])
def test_losses_of_counts_and_their_gradients_are_accurate(loss: str):
    assert_loss_is_exact(loss, "linear", (0.0, 1.0, 7.0, 1e3))


def test_bce_of_a_certain_right_answer_keeps_its_digits():
    """log(1 + e^a) where the target is 0 and the logit says so."""
    a = torch.linspace(-80.0, 0.0, 4_001)
    value = kernel_losses("bce", "linear", a, torch.zeros_like(a))[0]
    torch.testing.assert_close(value, softplus(a.double()), rtol=2e-6 * (10.0 * UNITS - 9.0), atol=0.0)


def test_bce_of_far_logits_is_finite():
    a = FAR.repeat(3)
    x = torch.tensor([0.0, 0.5, 1.0]).repeat_interleave(len(FAR))
    for value, exact in zip(
        kernel_losses("bce", "linear", a, x), exact_losses("bce", "linear", a, x), strict=True
    ):
        torch.testing.assert_close(value, exact, rtol=1e-6, atol=1e-6)
