"""Known properties of autoencoders on small problems: PCA, denoising, sparsity, contraction."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastae import Gaussian, functional, reference
from fastae.nn import Autoencoder


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """On matrices this small threads only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


TIED = pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])


def build(d: int, h: int, **changes) -> Autoencoder:
    torch.manual_seed(0)
    return Autoencoder(d, h, dtype=torch.float64, **changes)


def train(
    model: Autoencoder, x: Tensor, steps: int = 200, lr: float = 0.02, until: Callable[[], bool] | None = None
) -> None:
    torch.manual_seed(1)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        model(x).total.backward()
        optimizer.step()
        if until is not None and until():
            return


def curve(rows: int, features: int = 12, noise: float = 0.02, seed: int = 0) -> Tensor:
    """Points near a closed curve, in [0, 1]."""
    g = torch.Generator().manual_seed(seed)
    angle = 2.0 * math.pi * torch.rand(rows, 1, generator=g, dtype=torch.float64)
    phases = torch.linspace(0.0, 2.0 * math.pi, features + 1, dtype=torch.float64)[:features]
    frequencies = 1.0 + torch.arange(features) % 2
    points = 0.5 + 0.35 * torch.cos(angle * frequencies + phases)
    return (points + noise * torch.randn(points.shape, generator=g, dtype=torch.float64)).clamp(0.0, 1.0)


# --- principal components -------------------------------------------------------------------------------


@TIED
@pytest.mark.parametrize("centred", [True, False], ids=["centred", "with a mean"])
@pytest.mark.parametrize("h", [1, 3])
def test_a_linear_autoencoder_finds_the_principal_subspace(tied, centred, h):
    g = torch.Generator().manual_seed(3)
    basis = torch.linalg.qr(torch.randn(8, 5, generator=g, dtype=torch.float64)).Q
    scales = torch.tensor([3.0, 2.0, 1.5, 0.7, 0.4], dtype=torch.float64)
    x = (torch.randn(150, 5, generator=g, dtype=torch.float64) * scales) @ basis.T
    x = x - x.mean(0) if centred else x + torch.linspace(-1.0, 1.0, 8, dtype=torch.float64)
    model = build(8, h, activation="linear", loss="mse", tied=tied, bias=not centred)
    optimizer = torch.optim.LBFGS(
        model.parameters(),
        max_iter=400,
        tolerance_grad=1e-9,
        tolerance_change=0,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = model(x).total
        loss.backward()
        return loss

    optimizer.step(closure)
    variances, components = np.linalg.eigh(np.cov(x.T.numpy(), bias=True))
    principal = torch.from_numpy(components[:, -h:])
    # what the encoder does outside of the data's span is free
    subspaces = {"decoder": model.decoder_weight, "encoder": basis @ basis.T @ model.encoder.weight.T}
    for name, spanned in subspaces.items():
        q = torch.linalg.qr(spanned.detach()).Q
        sine = torch.linalg.matrix_norm(q - principal @ (principal.T @ q), ord=2)
        assert sine < 1e-2, name  # of the largest principal angle
    torch.testing.assert_close(model(x).total.item(), variances[:-h].sum(), rtol=1e-6, atol=0)


# --- denoising is contraction ---------------------------------------------------------------------------


SMOOTH = {"sigmoid": torch.sigmoid, "tanh": torch.tanh, "softplus": F.softplus, "gelu": F.gelu}


def hermite(d: int, order: int = 14) -> tuple[Tensor, Tensor]:
    """Nodes [n, d] and weights [n] that integrate against the standard normal in ``d`` dimensions."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(order)
    grid = torch.tensor(list(itertools.product(nodes, repeat=d)), dtype=torch.float64)
    products = torch.tensor(list(itertools.product(weights / weights.sum(), repeat=d)), dtype=torch.float64)
    return grid, products.prod(1)


def denoising_loss(model: Autoencoder, x: Tensor, std: float) -> Tensor:
    """E ||r(x + e) - x||^2 of each row over normal e, by quadrature of the fused loss."""
    nodes, weights = hermite(x.shape[1])
    noisy = (x[:, None] + std * nodes).flatten(0, 1)
    rows = functional.autoencoder_loss(
        noisy,
        model.encoder.weight,
        model.encoder.bias,
        None if model.options.tied else model.decoder_weight,
        model.decoder.bias,
        activation=model.options.activation,
        loss="mse",
        target=x.repeat_interleave(len(nodes), 0),
        reduction="none",
    ).total
    return rows.view(len(x), -1) @ weights


def second_order_term(model: Autoencoder, x: Tensor) -> Tensor:
    """||dr/dx||_F^2 + (r(x) - x) . Laplacian r(x) of each row: the factor of std^2."""
    weight, bias, v_weight, v_bias = (
        model.encoder.weight,
        model.encoder.bias,
        model.decoder_weight,
        model.decoder.bias,
    )
    contraction = reference.reconstruction_contraction(x, weight, bias, model.options.activation, v_weight)

    def laplacian(row: Tensor) -> Tensor:
        f = SMOOTH[model.options.activation]
        hessian = torch.func.hessian(lambda v: F.linear(f(F.linear(v, weight, bias)), v_weight, v_bias))(row)
        return hessian.diagonal(dim1=1, dim2=2).sum(1)

    bend = (model.reconstruct(x) - x) * torch.func.vmap(laplacian)(x)
    return contraction + bend.sum(1)


def small(d: int, tied: bool, activation: str) -> tuple[Autoencoder, Tensor]:
    model = build(d, 4, activation=activation, loss="mse", tied=tied)
    g = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.7 * torch.randn(parameter.shape, generator=g, dtype=torch.float64))
    return model, torch.randn(6, d, generator=g, dtype=torch.float64)


@TIED
@pytest.mark.parametrize("activation", SMOOTH)
@pytest.mark.parametrize("d", [2, 3])
@torch.no_grad()
def test_denoising_is_reconstruction_plus_contraction_up_to_the_fourth_order(tied, activation, d):
    model, x = small(d, tied, activation)
    clean = model.eval()(x, reduction="none").total
    factor = second_order_term(model, x)
    stds = torch.tensor([0.04, 0.08, 0.16], dtype=torch.float64)
    excess = torch.stack([denoising_loss(model, x, float(std)) - clean for std in stds])
    remainder = excess - stds[:, None].square() * factor
    # the second order is right where it leaves nothing below the fourth
    assert (remainder[0].abs() < 0.05 * excess[0].abs().max()).all()
    mean = remainder.abs().mean(1)
    slopes = (mean[1:] / mean[:-1]).log2()
    torch.testing.assert_close(slopes, torch.full_like(slopes, 4.0), rtol=0, atol=0.15)
    # contraction alone does not do: where r(x) is not x, the bend of r enters at the second order
    contraction = reference.reconstruction_contraction(
        x, model.encoder.weight, model.encoder.bias, activation, model.decoder_weight
    )
    alone = (excess - stds[:, None].square() * contraction).abs().mean(1)
    assert ((alone[1:] / alone[:-1]).log2() < 2.5).all()


@TIED
@torch.no_grad()
def test_of_a_linear_autoencoder_denoising_is_contraction_exactly(tied):
    model, x = small(2, tied, "linear")
    clean = model(x, reduction="none").total
    weight, bias = model.encoder.weight, model.encoder.bias
    contraction = reference.reconstruction_contraction(x, weight, bias, "linear", model.decoder_weight)
    torch.testing.assert_close(denoising_loss(model, x, 0.5) - clean, 0.25 * contraction)


@TIED
@torch.no_grad()
def test_the_fused_gaussian_corruption_averages_to_the_quadrature(tied):
    model, x = small(3, tied, "tanh")
    noisy = Autoencoder(3, 4, model.options, corruption=Gaussian(0.4), dtype=torch.float64)
    noisy.load_state_dict(model.state_dict())
    torch.manual_seed(0)
    losses = noisy(x.repeat_interleave(20000, 0), reduction="none").total.view(6, -1)
    error = losses.std(1) / 20000**0.5
    expected = denoising_loss(model, x, 0.4)
    assert ((losses.mean(1) - expected).abs() < 4.0 * error).all()
    clean = model(x, reduction="none").total
    assert ((expected - clean).abs() > 8.0 * error).sum() >= 4  # the test can tell


@pytest.mark.parametrize("kind", [{}, {"loss": "mse", "output_activation": "sigmoid"}], ids=["bce", "mse"])
@pytest.mark.parametrize("corruption", ["masking:0.3", "gaussian:0.2"])
def test_training_to_denoise_denoises_better_than_training_to_copy(kind, corruption):
    x, unseen = curve(256), curve(256, seed=1)
    denoising = build(12, 24, corruption=corruption, **kind)
    plain = build(12, 24, **kind)
    for model in (denoising, plain):
        train(model, x, steps=400)
    noisy = functional.corrupt(
        unseen, denoising.options.corruption, generator=torch.Generator().manual_seed(2)
    )
    with torch.no_grad():
        left, copied = ((model.reconstruct(noisy) - unseen).square().mean() for model in (denoising, plain))
    assert left < 0.7 * copied
    assert left < 0.5 * (noisy - unseen).square().mean()


# --- sparsity -------------------------------------------------------------------------------------------


@TIED
def test_an_l1_penalty_makes_sparse_codes(tied):
    x, shares = curve(128), []
    for weight in (0.0, 0.02, 0.1):
        model = build(12, 24, activation="relu", loss="mse", l1=weight, tied=tied)
        train(model, x, steps=300)
        shares.append(float((model.encode(x) > 0).double().mean()))
        assert model(x).reconstruction < 0.5 * (x - x.mean(0)).square().sum(1).mean()
    assert shares[0] > 1.2 * shares[1] > 1.4 * shares[2]


@pytest.mark.parametrize("target", [0.05, 0.2, 0.7])
def test_a_kl_penalty_brings_every_mean_activation_to_its_target(target):
    x = curve(128)
    plain, sparse = build(12, 24), build(12, 24, kl=5.0, kl_target=target)
    distances = []
    for model in (plain, sparse):
        train(model, x, steps=400, lr=0.03)
        distances.append(float((model.encode(x).mean(0) - target).abs().max().detach()))
    assert distances[1] < 0.02
    assert distances[0] > 0.2


# --- contraction ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["bce", "mse"])
@pytest.mark.parametrize("term", ["contractive", "higher_order"])
def test_a_penalty_on_the_jacobian_lowers_it_at_the_same_reconstruction(loss, term):
    x = curve(128)
    penalised = build(12, 24, loss=loss, **{term: {"contractive": 0.1, "higher_order": 3.0}[term]})
    plain = build(12, 24, loss=loss)

    @torch.no_grad()
    def reconstruction(model: Autoencoder) -> float:
        return float(model(x).reconstruction)

    def penalty(model: Autoencoder) -> float:
        options = dataclasses.replace(plain.options, **{term: 1.0}, higher_order_samples=8)
        measured = Autoencoder(12, 24, options, dtype=x.dtype)
        measured.load_state_dict(model.state_dict())
        torch.manual_seed(4)
        return float(getattr(measured(x), term).detach())

    mean = x.mean(0).expand_as(x)
    entries = F.binary_cross_entropy(mean, x, reduction="none") if loss == "bce" else (mean - x).square()
    train(penalised, x, steps=300)
    budget = reconstruction(penalised)
    assert budget < entries.sum(1).mean()  # of the best that knows nothing of the row
    train(plain, x, steps=300, until=lambda: reconstruction(plain) <= budget)
    assert reconstruction(plain) <= budget
    assert penalty(penalised) < 0.7 * penalty(plain)
