"""All figures at once: each against the diagnostic that measures it alone."""

from __future__ import annotations

import json

import pytest
import torch

from fastae.diagnostics import (
    Diagnosis,
    code_sparsity,
    dead_units,
    diagnose,
    jacobian_norm,
    reconstruction_errors,
    saturated_share,
    vector_field,
)


def test_every_figure_of_one_layer_is_that_of_its_diagnostic(make_model, rows, workspace):
    model, x = make_model((6, 4), activation="sigmoid"), rows(30, 6)
    model.encoder.weight.data[0] = 0.0
    figures = diagnose(model, x)
    code = model.encode(x).detach()
    penalty = jacobian_norm(model, x).square().mean().item()
    assert (figures["rows"], figures["loss"]) == (30, "bce")
    assert figures["reconstruction"] == pytest.approx(reconstruction_errors(model, x)[0].mean().item())
    excess = reconstruction_errors(model, x, excess=True)[0].mean().item()
    assert figures["reconstruction"] - figures["least_reconstruction"] == pytest.approx(excess)
    assert figures["mse"] == pytest.approx(vector_field(model, x).square().mean().item())
    assert figures["contractive_penalty"] == pytest.approx(penalty)
    (layer,) = figures["layers"]
    assert (layer["units"], layer["loss"]) == (4, "bce")
    assert layer["reconstruction"] == pytest.approx(figures["reconstruction"])
    assert layer["contractive_penalty"] == pytest.approx(penalty)
    assert layer["saturated_share"] == pytest.approx(saturated_share(code).mean().item())
    assert layer["dead_units"] == int(dead_units(code).sum()) == 1
    assert layer["mean_activation"] == pytest.approx(code.mean().item())
    assert layer["mean_sparsity"] == pytest.approx(code_sparsity(code).mean().item())
    slopes = code * (1 - code)
    assert layer["mean_squared_slope"] == pytest.approx(slopes.square().mean().item())
    norms = model.encoder.weight.square().sum(1)
    assert layer["mean_squared_norm"] == pytest.approx(norms.mean().item())


def test_the_layers_of_a_stack_are_measured_on_their_own_input(make_model, rows):
    stack = make_model((6, 5, 4), activation=["sigmoid", "tanh"], loss=["bce", "mse"])
    x = rows(2000, 6)
    figures = diagnose(stack, x)
    first, second = stack.autoencoders
    alone = [diagnose(first, x), diagnose(second, first.encode(x).detach())]
    assert figures["layers"] == [one["layers"][0] for one in alone]
    assert figures["reconstruction"] == pytest.approx(reconstruction_errors(stack, x)[0].mean().item())
    assert figures["mse"] == pytest.approx(vector_field(stack, x).square().mean().item())
    exact = jacobian_norm(stack, x, method="exact").square().mean().item()
    assert figures["contractive_penalty"] == pytest.approx(exact, rel=0.05)


def test_rows_in_pieces_are_rows_at_once(make_model, rows):
    model, x = make_model((6, 4), activation="gelu", loss="mse"), rows(30, 6)
    diagnosis = Diagnosis(model)
    for piece in (x[:1], x[1:1], x[1:20].view(1, 19, 6), x[20:]):
        diagnosis.add(piece)
    whole, found = diagnose(model, x), diagnosis.result()
    (layer,), (expected,) = found.pop("layers"), whole.pop("layers")
    assert found == pytest.approx(whole)
    assert layer == pytest.approx(expected)


def test_the_figures_are_plain_json_and_repeat_themselves(make_model, rows):
    stack, x = make_model((6, 5, 4), dtype=torch.float32), rows(8, 6).float()
    state = torch.get_rng_state()
    figures = diagnose(stack, x)
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures == diagnose(stack, x)
    assert torch.equal(state, torch.get_rng_state())


def test_without_rows_or_with_what_does_not_reconstruct(make_model, rows):
    model = make_model((6, 4))
    with pytest.raises(ValueError, match=r"^x: needs at least one row"):
        diagnose(model, rows(0, 6))
    with pytest.raises(TypeError, match=r"^model: expected an Autoencoder or a StackedAutoencoder"):
        diagnose(model.encoder, rows(3, 6))
