"""Saturation, rounding, autocast and loss scaling."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from fastae import Masking, functional
from fastae import reference as R
from fastae.activations import ACTIVATIONS
from tests.support import PLAIN

REDUCTIONS = pytest.mark.parametrize("reduction", ["mean", "sum", "none"])


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("loss", ["bce", "mse"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_saturated_units_stay_finite_in_float32(activation: str, loss: str, tied: bool):
    sizes = torch.tensor([0.0, 10.0, 100.0, 2500.0])[:, None]
    x = torch.cat((sizes, -sizes)) * torch.tensor([1.0, 1.0, -1.0, 1.0])
    w = torch.tensor([[1.0, 1.0, -1.0, 1.0], [-1.0, -1.0, 1.0, -1.0], [1.0, 1.0, 1.0, 1.0]])
    assert (x @ w.t()).abs().max() == 1e4
    leaves = [x, w, torch.zeros(3), None if tied else w.t().contiguous(), torch.zeros(4)]
    leaves = [None if t is None else t.requires_grad_() for t in leaves]
    options = {"contractive": 0.1, "higher_order": 0.1, "l1": 0.1, "kl": 0.1 * (activation == "sigmoid")}
    output_activation = activation if loss == "mse" else "linear"
    terms = functional.autoencoder_loss(
        *leaves, activation=activation, loss=loss, output_activation=output_activation, **options
    )
    assert all(term.isfinite() for term in terms if term is not None)
    for gradient in torch.autograd.grad(terms.total, [t for t in leaves if t is not None]):
        assert gradient.isfinite().all()


def errors(values: Sequence[Tensor], truth: Sequence[Tensor]) -> list[float]:
    """Relative errors in the Euclidean norm, in float64."""
    pairs = zip(values, truth, strict=True)
    return [((v.double() - t).norm() / t.norm()).item() for v, t in pairs]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("activation", ["sigmoid", "tanh", "relu", "softplus", "gelu", "silu"])
@pytest.mark.parametrize("loss", ["bce", "mse"])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_rounding_errors_are_at_most_twice_those_of_plain_torch(
    dtype: torch.dtype, activation: str, loss: str, reduction: str, parameters, seeded
):
    p = parameters(64, 24, 16)
    p = p._replace(weight=p.weight / 4, decoder_weight=p.decoder_weight / 4)
    rounded = type(p)(*(t.to(dtype) for t in p))
    seed = seeded()

    def results(function: Callable[..., R.AutoencoderLoss], dtype: torch.dtype, **more: Any) -> list[Tensor]:
        """Total, reconstruction, contractive, l1, and the gradients of the mean total."""
        leaves = rounded.leaves(dtype=dtype)[:5]
        options = {"contractive": 0.1, "l1": 0.05, "corruption": Masking(0.3)}
        terms = function(*leaves, activation=activation, loss=loss, **options, **more)
        values = [term if reduction == "none" else term.mean() for term in terms if term is not None]
        return [*values, *torch.autograd.grad(terms.total.mean(), leaves)]

    truth = results(R.autoencoder_loss, torch.float64, seed=seed)
    plain = errors(results(R.autoencoder_loss, dtype, seed=seed), truth)
    fused = errors(results(functional.autoencoder_loss, dtype, reduction=reduction), truth)
    for ours, theirs in zip(fused, plain, strict=True):
        assert ours <= 2.0 * theirs + torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_slopes_of_saturated_units_keep_their_digits(dtype: torch.dtype, activation: str):
    """Where the rounded code would tell no slope: 1 + h of elu is 0 in 16 bits from z = -8 on."""
    z = torch.linspace(-14.0, -8.0, 60)

    def slope(function: Callable[..., Tensor], dtype: torch.dtype) -> Tensor:
        x = torch.tensor([[0.5], [1.0]], dtype=dtype)
        bias = z.to(dtype).requires_grad_()
        code = function(x, torch.zeros(60, 1, dtype=dtype), bias, activation)
        return torch.autograd.grad((1e3 * code).sum(), bias)[0].double()

    def plain(x: Tensor, weight: Tensor, bias: Tensor, activation: str) -> Tensor:
        return PLAIN[activation](torch.nn.functional.linear(x, weight, bias))

    truth = slope(R.encode, torch.float64)
    ours, theirs = ((slope(f, dtype) - truth).norm() for f in (functional.encode, plain))
    assert ours <= 2.0 * theirs + torch.finfo(dtype).eps * truth.norm()


def test_losses_of_16_bit_inputs_are_float32(parameters, everything):
    leaves = parameters().leaves(dtype=torch.bfloat16)
    terms = functional.autoencoder_loss(*leaves[:5], **everything)
    assert {term.dtype for term in terms} == {torch.float32}
    code, penalty = functional.contractive_encode(*leaves[:3])
    assert (code.dtype, penalty.dtype) == (torch.bfloat16, torch.float32)
    assert all(g.dtype == torch.bfloat16 for g in torch.autograd.grad(terms.total, leaves[:5]))


def test_target_may_have_a_dtype_of_its_own(parameters):
    p = parameters()
    x, w, b, v, c, _ = p.leaves(dtype=torch.float32)
    target = p.target.clone().requires_grad_()
    value = functional.autoencoder_loss(x, w, b, v, c, target=target, loss="mse").total
    expected = functional.autoencoder_loss(x, w, b, v, c, target=target.float(), loss="mse").total
    assert torch.equal(value, expected)
    (gradient,) = torch.autograd.grad(value, target)
    assert gradient.dtype == torch.float64


def test_autocast_is_that_of_a_linear_layer(parameters, everything, seeded):
    leaves = parameters(16, 24, 12).leaves(dtype=torch.float32)
    leaves = leaves._replace(weight=(leaves.weight / 4).detach().requires_grad_())
    code = functional.encode(*leaves[:3])
    seeded()
    total = functional.autoencoder_loss(*leaves[:5], **everything).total
    gradients = torch.autograd.grad(total, leaves[:5])
    seeded()
    with torch.autocast("cpu", torch.bfloat16):
        terms = functional.autoencoder_loss(*leaves[:5], **everything)
        low_code, penalty = functional.contractive_encode(*leaves[:3])
    assert (low_code.dtype, penalty.dtype) == (torch.bfloat16, torch.float32)
    assert all(term.dtype == torch.float32 for term in terms)
    torch.testing.assert_close(low_code.float(), code, rtol=0, atol=0.02)
    torch.testing.assert_close(terms.total, total, rtol=0.01, atol=0)
    low_gradients = torch.autograd.grad(terms.total, leaves[:5])
    assert all(g.dtype == torch.float32 for g in low_gradients)
    assert max(errors(low_gradients, [g.double() for g in gradients])) < 0.03


@REDUCTIONS
@pytest.mark.parametrize("name", ["reconstruction_loss", "autoencoder_loss"])
def test_gradient_scaler_meets_no_overflow_of_the_scale_itself(name: str, reduction: str, parameters):
    """``GradScaler`` starts at 2**16, above float16's largest number; small gradients survive it."""
    p = parameters(2, 6, 6)
    x, w, b, v, c = leaves = [
        t.float().requires_grad_() for t in (p.x, p.weight, p.bias, p.decoder_weight * 1e-3, p.x[0])
    ]
    target = torch.sigmoid(c.detach()).repeat(2, 1) + 0.01

    def gradients(enabled: bool, scale: float) -> list[Tensor]:
        with torch.autocast("cpu", torch.float16, enabled=enabled):
            if name == "reconstruction_loss":
                value = functional.reconstruction_loss(x, v, c, target, reduction=reduction)
            else:
                value = functional.autoencoder_loss(x, w, b, v, c, target=target, reduction=reduction).total
        results = torch.autograd.grad(value.sum() * scale, leaves, allow_unused=True)
        return [g.double() / scale for g in results if g is not None]

    assert max(errors(gradients(True, 2.0**16), gradients(False, 1.0))) < 0.1


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_half_precision_gradients_are_scaled_before_they_overflow(reduction):
    """Entries of grad V are 512 * 16 * 16, beyond float16 unless the upstream 1 / 512 scales it first."""
    code = torch.zeros(3, 4).half().requires_grad_()
    weight, target = torch.full((512, 4), 16.0).half(), torch.full((3, 512), -8.0).half()
    loss = functional.reconstruction_loss(code, weight, None, target, "mse", reduction=reduction)
    scale = torch.full_like(loss, 1.0 / 512.0)
    (grad,) = torch.autograd.grad(loss, code, scale)
    expected = 16.0 * 16.0 / (3.0 if reduction == "mean" else 1.0)
    torch.testing.assert_close(grad.float(), torch.full((3, 4), expected), rtol=2e-3, atol=0.0)
