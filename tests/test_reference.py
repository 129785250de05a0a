"""The reference against torch.func's Jacobians, torch.distributions, and the mistakes of public code."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import jacrev, vmap

from fastae import Emphasis, Gaussian, Masking, SaltAndPepper, Swap, functional, philox
from fastae import reference as R
from fastae.activations import ACTIVATIONS
from fastae.corruption import Corruption
from fastae.losses import get_loss

EVERY = pytest.mark.parametrize("activation", ACTIVATIONS)
EXACT = {"rtol": 1e-9, "atol": 1e-12}


def jacobians(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The true Jacobian of ``function`` (one row to one row) at every row of x, differentiable."""
    return vmap(jacrev(function))(x)


def frobenius(j: Tensor) -> Tensor:
    return j.square().sum((1, 2))


def assert_same(value: Tensor, expected: Tensor, *leaves: Tensor) -> None:
    """The values [M] agree, and so do their gradients under random weights of the rows."""
    torch.testing.assert_close(value, expected, **EXACT)
    weights = torch.linspace(0.5, 1.5, len(value), dtype=value.dtype)
    gradients = [
        torch.autograd.grad(v @ weights, leaves, retain_graph=True, allow_unused=True, materialize_grads=True)
        if v.requires_grad
        else [torch.zeros_like(leaf) for leaf in leaves]
        for v in (value, expected)
    ]
    for gradient, expected_gradient in zip(*gradients, strict=True):
        torch.testing.assert_close(gradient, expected_gradient, **EXACT)


# --- penalties ------------------------------------------------------------------------------------------


@EVERY
@pytest.mark.parametrize("has_bias", [True, False], ids=["bias", "no bias"])
def test_contractive_penalty_is_that_of_the_true_jacobian(activation: str, has_bias: bool, parameters):
    x, w, b, *_ = parameters().leaves()
    b = b if has_bias else None
    j = jacobians(lambda row: R.encode(row, w, b, activation), x)
    leaves = (x, w, b) if has_bias else (x, w)
    assert_same(R.contractive_penalty(x, w, b, activation), frobenius(j), *leaves)


@EVERY
def test_higher_order_penalty_is_that_of_two_jacobians(activation: str, parameters):
    x, w, b, _, _, noisy = parameters().leaves()
    j, j2 = (jacobians(lambda row: R.encode(row, w, b, activation), at) for at in (x, noisy))
    value = R.higher_order_penalty(x, noisy, w, b, activation)
    assert_same(value, frobenius(j - j2), x, noisy, w, b)


def stack(parameters, depth: int, activations: tuple[str, ...]):
    """x and the weights and biases of a small encoder of ``depth`` layers, and its function of one row."""
    widths = (5, 4, 3, 3)[: depth + 1]
    x = parameters(4, widths[0], 2).leaves().x
    layers = [parameters(1, d, h, seed=h + 10 * d).leaves() for d, h in itertools.pairwise(widths)]
    weights, biases = [p.weight for p in layers], [p.bias for p in layers]

    def encoder(row: Tensor) -> Tensor:
        for weight, bias, activation in zip(weights, biases, activations, strict=True):
            row = R.encode(row, weight, bias, activation)
        return row

    return x, weights, biases, encoder


@EVERY
def test_two_layer_penalty_is_that_of_the_true_jacobian(activation: str, parameters):
    activations = (activation, "tanh")
    x, weights, biases, encoder = stack(parameters, 2, activations)
    value = R.two_layer_penalty(x, weights, biases, activations)
    assert_same(value, frobenius(jacobians(encoder, x)), x, *weights, *biases)


DEEP = pytest.mark.parametrize(
    "activations", [("tanh",), ("sigmoid", "softplus"), ("silu", "elu", "sigmoid")], ids="-".join
)


@DEEP
def test_hutchinson_probe_gives_one_vector_jacobian_product(activations: tuple[str, ...], parameters):
    x, weights, biases, encoder = stack(parameters, len(activations), activations)
    probe = torch.randn(len(x), len(weights[-1]), generator=torch.Generator().manual_seed(3)).double()
    product = torch.einsum("mhd,mh->md", jacobians(encoder, x), probe)
    value = R.hutchinson_penalty(x, weights, biases, activations, probe)
    assert_same(value, product.square().sum(1), x, *weights, *biases)


@DEEP
def test_hutchinson_mean_over_all_signs_is_the_exact_penalty(activations: tuple[str, ...], parameters):
    x, weights, biases, encoder = stack(parameters, len(activations), activations)
    signs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=len(weights[-1])))).double()
    values = [
        R.hutchinson_penalty(x, weights, biases, activations, sign.expand(len(x), -1)) for sign in signs
    ]
    assert_same(torch.stack(values).mean(0), frobenius(jacobians(encoder, x)), x, *weights, *biases)


@EVERY
def test_reconstruction_contraction_is_that_of_the_true_jacobian(activation: str, parameters):
    x, w, b, v, c, _ = parameters().leaves()
    j = jacobians(lambda row: F.linear(R.encode(row, w, b, activation), v, c), x)
    assert_same(R.reconstruction_contraction(x, w, b, activation, v), frobenius(j), x, w, b, v)


# --- the mistakes of public code ------------------------------------------------------------------------

WRONG = {
    "slopes of the sum of the units": lambda s, h, w: (s @ w).square().sum(1),
    "the sigmoid's derivative": lambda s, h, w: (h * (1.0 - h)).square() @ w.square().sum(1),
    "(sum W)^2": lambda s, h, w: s.square() @ w.sum(1).square(),
    "norms of the columns": lambda s, h, w: s.square() @ w.square().sum(0),
    "slopes not squared": lambda s, h, w: s @ w.square().sum(1),
    "mean over units": lambda s, h, w: (s.square() * w.square().sum(1)).mean(1),
    "mean over features": lambda s, h, w: s.square() @ w.square().mean(1),
    "the square root": lambda s, h, w: (s.square() @ w.square().sum(1)).sqrt(),
    "q detached": lambda s, h, w: s.square() @ w.detach().square().sum(1),
    "slopes detached": lambda s, h, w: s.detach().square() @ w.square().sum(1),
}
RIGHT_VALUE = ("q detached", "slopes detached")


def _fused(x: Tensor, w: Tensor, b: Tensor, activation: str) -> Tensor:
    return functional.contractive_encode(x, w, b, activation, reduction="none")[1]


@pytest.mark.parametrize("ours", [R.contractive_penalty, _fused], ids=["reference", "fused"])
@pytest.mark.parametrize("mistake", WRONG)
def test_classical_mistake_is_not_made(ours, mistake: str, parameters):
    """On square weights of size 1 every wrong formula runs, and is more than a tenth off."""
    activation = "relu" if mistake == "the sigmoid's derivative" else "tanh"
    x, w, b, *_ = parameters(rows=6, features=6, units=6).leaves()
    h, s = R.encode(x, w, b, activation), R.slopes(x, w, b, activation)
    wrong = WRONG[mistake](s, h, w)
    right = frobenius(jacobians(lambda row: R.encode(row, w, b, activation), x))
    assert_same(ours(x, w, b, activation), right, x, w, b)
    if mistake in RIGHT_VALUE:
        right, wrong = (torch.autograd.grad(value.sum(), w)[0] for value in (right, wrong))
    assert (wrong - right).norm() > 0.1 * right.norm()


@pytest.mark.parametrize("ours", [R.contractive_penalty, _fused], ids=["reference", "fused"])
def test_penalty_has_a_gradient_where_a_plain_jacobian_has_none(ours, parameters):
    x, w, b, *_ = parameters(rows=1).leaves()
    plain = torch.autograd.functional.jacobian(lambda row: R.encode(row, w, b, "tanh"), x)
    assert not plain.requires_grad
    value = ours(x, w, b, "tanh")
    torch.testing.assert_close(value.sum(), plain.square().sum(), **EXACT)
    assert all(gradient.any() for gradient in torch.autograd.grad(value.sum(), (x, w, b)))


# --- sparsity and losses --------------------------------------------------------------------------------


def test_l1_sums_absolute_units(parameters):
    code = parameters().weight.requires_grad_()
    assert_same(R.l1_penalty(code), torch.stack([sum(map(abs, row)) for row in code]), code)


@pytest.mark.parametrize("target", [0.05, 0.5, 0.9])
def test_kl_is_the_divergence_of_bernoulli_distributions(target: float, parameters):
    mean = parameters().x[0].requires_grad_()
    bernoulli = torch.distributions.Bernoulli
    target_mean = torch.full_like(mean, target)
    divergence = torch.distributions.kl_divergence(bernoulli(target_mean), bernoulli(mean)).sum()
    assert_same(R.kl_divergence(mean, target)[None], divergence[None], mean)


def test_kl_penalty_is_of_the_mean_over_rows(parameters):
    code = parameters().x.requires_grad_()
    assert_same(R.kl_penalty(code, 0.1)[None], R.kl_divergence(code.sum(0) / len(code), 0.1)[None], code)


def test_kl_is_zero_at_its_target_and_finite_at_the_ends():
    assert R.kl_divergence(torch.full((3,), 0.2, dtype=torch.float64), 0.2).item() == pytest.approx(
        0, abs=1e-15
    )
    for dtype in (torch.float32, torch.float64):
        mean = torch.tensor([0.0, 1.0], dtype=dtype, requires_grad=True)
        value = R.kl_divergence(mean, 0.2)
        (gradient,) = torch.autograd.grad(value, mean)
        assert value.isfinite() and gradient.isfinite().all()


@pytest.mark.parametrize("output_activation", ACTIVATIONS)
def test_mse_is_that_of_torch_summed_over_features(output_activation: str, parameters):
    x, _, _, v, c, _ = parameters().leaves()
    code = parameters(5, 6, 1).leaves().x
    r = ACTIVATIONS[output_activation].function(F.linear(code, v, c))
    expected = F.mse_loss(r, x, reduction="none").sum(1)
    assert_same(R.reconstruction_loss(code, v, c, x, "mse", output_activation), expected, code, v, c, x)


def test_bce_is_the_cross_entropy_of_probabilities(parameters):
    x, _, _, v, c, _ = parameters().leaves()
    code = parameters(5, 6, 1).leaves().x
    p = torch.sigmoid(F.linear(code, v, c))
    expected = -(x * p.log() + (1.0 - x) * (1.0 - p).log()).sum(1)
    assert_same(R.reconstruction_loss(code, v, c, x, "bce"), expected, code, v, c, x)


def test_entry_weights_weigh_entries_before_the_sum(parameters):
    x, _, _, v, c, _ = parameters().leaves()
    code = parameters(5, 6, 1).leaves().x
    weights = parameters(seed=1).x
    expected = (weights * (F.linear(code, v, c) - x) ** 2).sum(1)
    value = R.reconstruction_loss(code, v, c, x, "mse", entry_weight=weights)
    assert_same(value, expected, code, v, c, x)


@pytest.mark.parametrize("output_activation", ["linear", "tanh"])
def test_cosine_is_that_of_pytorch(output_activation: str, parameters):
    x, _, _, v, c, _ = parameters().leaves()
    code = parameters(5, 6, 1).leaves().x
    r = ACTIVATIONS[output_activation].function(F.linear(code, v, c))
    expected = 1.0 - F.cosine_similarity(r, x)
    assert_same(R.reconstruction_loss(code, v, c, x, "cosine", output_activation), expected, code, v, c, x)


def test_cosine_of_rows_of_zeros_is_that_of_pytorch():
    a, x = (
        torch.eye(3, dtype=torch.float64)[[0, 0, 1]] * torch.tensor([[0.0], [2.0], [0.0]]),
        torch.eye(3)[[0, 2, 0]],
    )
    a, x = a.requires_grad_(), (x * torch.tensor([[1.0], [0.0], [0.0]])).double().requires_grad_()
    assert_same(R.reconstruction_entries(a, x, "cosine").sum(1), 1.0 - F.cosine_similarity(a, x), a, x)


def test_unknown_loss_is_refused(parameters):
    p = parameters()
    with pytest.raises(ValueError, match="loss: 'mae' is not one of mse, huber, bce"):
        R.reconstruction_loss(p.x, p.weight, None, p.x, "mae")
    for text in ("huber:", "huber:0", "negative_binomial:inf", "huber:x"):
        with pytest.raises(ValueError, match=f"loss: .* takes a number above 0 .*'{text}'"):
            R.reconstruction_loss(p.x, p.weight, None, p.x, text)


def test_losses_of_counts_are_likelihoods():
    stats = pytest.importorskip("scipy.stats")
    a = torch.linspace(-6.0, 60.0, 45, dtype=torch.float64)
    x = torch.arange(45, dtype=torch.float64)
    mean = F.softplus(a, threshold=50.0)
    poisson = F.poisson_nll_loss(mean, x, log_input=False, eps=0.0, reduction="none")
    torch.testing.assert_close(R.reconstruction_entries(a, x, "poisson"), poisson, **EXACT)
    for t in (0.3, 1.0, 20.0):
        free = torch.lgamma(x + t) - math.lgamma(t) - torch.lgamma(x + 1.0) - x * math.log(t)
        exact = -torch.from_numpy(stats.nbinom.logpmf(x.numpy(), t, (t / (t + mean)).numpy()))
        value = R.reconstruction_entries(a, x, f"negative_binomial:{t}")
        torch.testing.assert_close(value - free, exact, rtol=1e-11, atol=1e-11)
        least = get_loss(f"negative_binomial:{t}").least
        assert least is not None and (value >= least(x) - 1e-12).all()


# --- the whole objective --------------------------------------------------------------------------------


def test_objective_is_its_parts_at_the_corrupted_input_and_the_clean_target(parameters):
    x, w, b, v, c, _ = p = parameters().leaves()
    masking = Masking(0.4)
    noisy = R.corrupt(x, masking, 9)
    code = R.encode(noisy, w, b, "sigmoid")
    copies = [R.corrupt(noisy, Gaussian(0.2), 9, philox.STREAM_CONTRACTION + k) for k in range(2)]
    expected = {
        "reconstruction": R.reconstruction_loss(code, v, c, x, "bce"),
        "contractive": R.contractive_penalty(noisy, w, b, "sigmoid"),
        "higher_order": sum(R.higher_order_penalty(noisy, copy, w, b, "sigmoid") for copy in copies) / 2,
        "l1": R.l1_penalty(code),
        "kl": R.kl_penalty(code, 0.1).expand(5),
    }
    factors = {"reconstruction": 1.0, "contractive": 0.3, "higher_order": 0.7, "l1": 0.2, "kl": 0.5}
    terms = R.autoencoder_loss(
        *p[:5],
        seed=9,
        corruption=masking,
        higher_order_std=0.2,
        higher_order_samples=2,
        kl_target=0.1,
        **{name: factor for name, factor in factors.items() if name != "reconstruction"},
    )
    total = sum(factors[name] * expected[name] for name in factors)
    assert_same(terms.total, total, *p[:5])
    for name, value in expected.items():
        torch.testing.assert_close(getattr(terms, name).expand(5), value, **EXACT)


def test_plain_objective_is_the_reconstruction_alone(parameters):
    terms = R.autoencoder_loss(*parameters()[:5])
    assert terms[2:] == (None, None, None, None)
    assert torch.equal(terms.total, terms.reconstruction)


def test_tied_weights_are_the_encoder_transposed(parameters):
    x, w, b, _, c, _ = parameters()
    tied, untied = (R.autoencoder_loss(x, w, b, v, c, contractive=0.1).total for v in (None, w.T))
    torch.testing.assert_close(tied, untied, **EXACT)


def test_target_replaces_the_input_in_the_loss_alone(parameters):
    x, w, b, v, c, target = parameters()
    terms = R.autoencoder_loss(x, w, b, v, c, contractive=0.1, target=target)
    code = R.encode(x, w, b, "sigmoid")
    torch.testing.assert_close(
        terms.reconstruction, R.reconstruction_loss(code, v, c, target, "bce"), **EXACT
    )
    torch.testing.assert_close(terms.contractive, R.contractive_penalty(x, w, b, "sigmoid"), **EXACT)


def test_emphasis_weighs_corrupted_and_clean_entries_apart(parameters):
    x, w, b, v, c, _ = parameters()
    masking = Masking(0.5)
    hit = R.corrupted_entries(x, masking, 9)
    assert 0 < hit.sum() < hit.numel()
    a = F.linear(R.encode(R.corrupt(x, masking, 9), w, b, "tanh"), v, c)
    expected = [
        sum((3.0 if hit[n, i] else 0.25) * (a[n, i] - x[n, i]) ** 2 for i in range(7)) for n in range(5)
    ]
    terms = R.autoencoder_loss(
        x, w, b, v, c, seed=9, activation="tanh", loss="mse", corruption=masking, emphasis=Emphasis(3.0, 0.25)
    )
    torch.testing.assert_close(terms.reconstruction, torch.stack(expected), **EXACT)


def test_code_noise_is_normal_and_dropout_keeps_the_mean():
    code = torch.full((400, 500), 0.5, dtype=torch.float64)
    noise = R.perturb_code(code, 3, "gaussian", 0.2, 0.0) - code
    assert noise.mean().item() == pytest.approx(0.0, abs=5 * 0.2 / code.numel() ** 0.5)
    assert noise.std().item() == pytest.approx(0.2, rel=5 / (2 * code.numel()) ** 0.5)
    dropped = R.perturb_code(code, 3, "none", 0.0, 0.2)
    assert dropped.unique().tolist() == pytest.approx([0.0, 0.625], rel=2.0**-16)
    assert (dropped == 0.0).double().mean().item() == pytest.approx(0.2, abs=5 * 0.4 / code.numel() ** 0.5)


def test_bernoulli_codes_are_binary_draws_with_a_straight_gradient():
    code = torch.linspace(0.0, 1.0, 11, dtype=torch.float64).repeat(20_000, 1).requires_grad_()
    drawn = R.perturb_code(code, 3, "bernoulli", 0.0, 0.0)
    torch.testing.assert_close(drawn, drawn.round(), rtol=0, atol=1e-15)
    assert drawn[:, 0].sum() == 0 and drawn[:, -1].sum() == len(code)
    torch.testing.assert_close(drawn.mean(0), code[0], rtol=0, atol=5 * 0.5 / len(code) ** 0.5)
    (gradient,) = torch.autograd.grad(drawn.sum(), code)
    assert torch.equal(gradient, torch.ones_like(code))


@pytest.mark.parametrize("kind", [Masking(0.3), Gaussian(0.1), SaltAndPepper(0.3), Swap(0.3)], ids=str)
def test_noise_is_drawn_for_tensors_of_any_device(kind: Corruption):
    x = torch.empty(4, 6, device="meta")
    assert R.corrupt(x, kind, 1).device == x.device
    assert R.perturb_code(x, 1, "bernoulli", 0.0, 0.5).device == x.device
