"""Vector field, score and errors of reconstructions."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from fastae.activations import ACTIVATIONS
from fastae.diagnostics import diagnose, reconstruction_errors, score, vector_field
from fastae.nn import Autoencoder, StackedAutoencoder

MODELS: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "bce": ((6, 4), {}),
    "mse, untied": ((6, 8), {"activation": "relu", "loss": "mse", "tied": False}),
    "mse, tanh output": ((6, 4), {"loss": "mse", "output_activation": "tanh", "bias": False}),
    "two layers": ((6, 5, 4), {"activation": ["sigmoid", "tanh"], "loss": ["bce", "mse"]}),
    "three layers": ((6, 5, 4, 3), {"activation": "gelu", "loss": "mse"}),
}


@pytest.fixture(params=MODELS)
def model(request, make_model):
    sizes, options = MODELS[request.param]
    return make_model(sizes, **options)


def test_the_field_is_the_reconstructions_displacement(model, rows, workspace):
    x = rows(9, 6)
    torch.testing.assert_close(vector_field(model, x), (model.reconstruct(x) - x).detach())
    torch.testing.assert_close(score(model, x, 0.5), 4.0 * (model.reconstruct(x) - x).detach())


def test_errors_are_the_models_own_loss(model, rows, workspace):
    x = rows(9, 6)
    errors, features = reconstruction_errors(model, x)
    with torch.no_grad():
        r = model.reconstruct(x)
        options = (model.autoencoders[0] if isinstance(model, StackedAutoencoder) else model).options
        bce = options.loss == "bce"
        entries = F.binary_cross_entropy(r, x, reduction="none") if bce else (r - x).square()
        total = model.eval()(x).reconstruction
    torch.testing.assert_close(errors, entries.sum(1))
    torch.testing.assert_close(features, entries.mean(0))
    torch.testing.assert_close(errors.mean(), total)
    torch.testing.assert_close(features.sum(), total)


@pytest.mark.parametrize("loss", ["bce", "mse"])
def test_what_exceeds_the_least_loss_is_0_for_a_perfect_reconstruction(loss, make_model):
    torch.manual_seed(0)
    x = torch.rand(5, 6, dtype=torch.float64)
    x[0, 0], x[1, 1] = 0.0, 1.0
    model = Autoencoder(6, 3, loss=loss).double()
    plain, excess = (reconstruction_errors(model, x, excess=flag) for flag in (False, True))
    entropy = torch.special.entr(x) + torch.special.entr(1 - x) if loss == "bce" else 0 * x
    torch.testing.assert_close(excess[0], plain[0] - entropy.sum(1))
    torch.testing.assert_close(excess[1], plain[1] - entropy.mean(0))
    with torch.no_grad():
        model.decoder.bias.fill_(0.0)
        model.encoder.weight.zero_()
        half = torch.full((2, 6), 0.5, dtype=torch.float64)
        expected = 0.0 if loss == "bce" else 6 * 0.25
        rows_errors = reconstruction_errors(model, half, excess=True)[0]
    torch.testing.assert_close(rows_errors, torch.full((2,), expected, dtype=torch.float64))


def test_errors_grow_with_the_distance_from_the_range_of_cross_entropy(make_model, rows):
    """There the loss itself falls without end on one side."""
    model, x = make_model((6, 4)), rows(1, 6)
    for direction in (1.0, -1.0):
        far = torch.cat([x + direction * distance for distance in (0.0, 2.0, 5.0, 100.0)])
        errors = reconstruction_errors(model, far, excess=True)[0]
        assert (errors.diff() > 0).all() and diagnose(model, far)["reconstruction"] > 2000.0
    nearest = far[-1:].clamp(0, 1)
    expected = reconstruction_errors(model, nearest)[0] + (far[-1:] - nearest).square().sum(1)
    layer = model.decoder_product(model.encode(far[-1:])).detach()
    change = F.binary_cross_entropy_with_logits(layer, nearest, reduction="none").sum(1)
    change -= F.binary_cross_entropy(model.reconstruct(nearest), nearest, reduction="none").sum(1)
    torch.testing.assert_close(reconstruction_errors(model, far[-1:])[0], (expected + change).detach())


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_output_activation(activation, make_model, rows, plain):
    model = make_model((5, 3), activation="tanh", loss="mse", output_activation=activation)
    x = rows(4, 5)
    r = plain[activation](
        F.linear(torch.tanh(model.encoder(x).atanh()), model.decoder_weight, model.decoder.bias)
    )
    torch.testing.assert_close(vector_field(model, x), (r - x).detach())
    torch.testing.assert_close(reconstruction_errors(model, x)[0], (r - x).square().sum(1).detach())


def test_confident_wrong_logits_cost_what_they_cost(make_model):
    """A sigmoid rounded to 1 would cost 100 or infinity."""
    model = make_model((3, 2), tied=False, dtype=torch.float32)
    for parameter in model.parameters():
        parameter.data.zero_()
    model.decoder.bias.data = torch.tensor([-30.0, 30.0, 60.0])
    errors, features = reconstruction_errors(model, torch.tensor([[1.0, 0.0, 0.0]] * 2))
    assert errors.tolist() == pytest.approx([120.0, 120.0])
    assert features.tolist() == pytest.approx([30.0, 30.0, 60.0])


def test_the_best_denoiser_of_normal_data_has_the_score_of_the_noisy_density():
    """For x ~ N(0, v) in every feature r(x) = v / (v + std^2) x, and the score is -x / (v + std^2)."""
    variance, std = 2.0, 0.3
    model = Autoencoder(3, 3, activation="linear", loss="mse", tied=False, dtype=torch.float64)
    model.encoder.weight.data = torch.eye(3, dtype=torch.float64)
    model.decoder.weight.data = variance / (variance + std**2) * torch.eye(3, dtype=torch.float64)
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(score(model, x, std), -x / (variance + std**2))


STD = 0.15


@pytest.fixture(scope="module")
def circle() -> Autoencoder:
    """A denoising autoencoder of points on the unit circle."""
    torch.manual_seed(0)
    model = Autoencoder(2, 64, activation="tanh", loss="mse", tied=False, corruption=f"gaussian:{STD}")
    steps = 2000
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        angle = 2.0 * math.pi * torch.rand(256)
        loss = model(torch.stack([angle.cos(), angle.sin()], 1)).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model


@pytest.mark.parametrize("side", [-1.0, 1.0], ids=["inside", "outside"])
def test_a_trained_denoiser_points_to_the_manifold(circle, side):
    angle = torch.linspace(0.0, 2.0 * math.pi, 361)[:-1]
    ray = torch.stack([angle.cos(), angle.sin()], 1)
    for distance in (0.5 * STD, STD, 1.5 * STD, 2.0 * STD):
        field = vector_field(circle, (1.0 + side * distance) * ray)
        cosine = F.cosine_similarity(field, -side * ray)
        assert cosine.mean() > 0.9, (distance, cosine.mean())
    # and by about the whole way back
    moved = (vector_field(circle, (1.0 + side * STD) * ray) * (-side * ray)).sum(1)
    assert moved.mean().item() == pytest.approx(STD, rel=0.35)


def test_what_does_not_fit_is_named(make_model, rows):
    model, x = make_model((6, 4)), rows(3, 6)
    for std in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match=r"^std: must be a finite number > 0"):
            score(model, x, std)
    with pytest.raises(ValueError, match=r"^x: needs at least 1 row, got shape \[0, 6\]"):
        reconstruction_errors(model, x[:0])
    for function in (vector_field, reconstruction_errors):
        with pytest.raises(
            TypeError, match=r"^model: expected an Autoencoder or a StackedAutoencoder, got Enc"
        ):
            function(model.encoder, x)
