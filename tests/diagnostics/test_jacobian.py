"""Norm, spectrum, tangents and contraction against the true Jacobian."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from fastae.activations import ACTIVATIONS
from fastae.diagnostics import contraction_curve, jacobian_norm, jacobian_spectrum, tangents
from fastae.nn import EncoderLayer

# under- and overcomplete, narrow in the middle and at either end
SIZES = [(6, 4), (4, 6), (5, 5), (6, 5, 4), (4, 7, 5), (7, 2, 5), (6, 5, 4, 3), (3, 5, 4, 6), (5, 3, 6, 4)]
CLOSE = {"rtol": 1e-9, "atol": 1e-11}


def mixed(name: str, depth: int) -> list[str]:
    """``name`` in every layer but the second, whose slopes tell the order of the factors."""
    return [name, "tanh", name][:depth]


@pytest.fixture(params=SIZES, ids=str)
def sizes(request):
    return request.param


@pytest.fixture(params=ACTIVATIONS)
def layers(request, sizes, make_layers):
    return make_layers(sizes, mixed(request.param, len(sizes) - 1))


def test_the_norm_is_that_of_the_true_jacobian(layers, rows, jacobians, sizes):
    x = rows(4, sizes[0])
    expected = torch.linalg.matrix_norm(jacobians(layers, x))
    torch.testing.assert_close(jacobian_norm(layers, x, method="exact"), expected, **CLOSE)
    torch.testing.assert_close(jacobian_norm(layers, x), expected, **CLOSE)


def test_the_spectrum_is_that_of_the_true_jacobian(layers, rows, jacobians, sizes):
    x = rows(4, sizes[0])
    expected = torch.linalg.svdvals(jacobians(layers, x))
    found = jacobian_spectrum(layers, x)
    assert found.shape == (min(sizes),)
    torch.testing.assert_close(found, expected[:, : min(sizes)].mean(0), **CLOSE)
    # what is left out is what a narrow layer cannot pass on
    torch.testing.assert_close(expected[:, min(sizes) :], torch.zeros_like(expected[:, min(sizes) :]))
    torch.testing.assert_close(jacobian_spectrum(layers, x, 2), found[:2], **CLOSE)


def test_squares_of_a_rows_spectrum_sum_to_its_squared_norm(layers, rows, sizes):
    x = rows(3, sizes[0])
    spectra = torch.stack([jacobian_spectrum(layers, row[None]) for row in x])
    norms = torch.linalg.vector_norm(spectra, dim=1)
    torch.testing.assert_close(norms, jacobian_norm(layers, x, method="exact"), **CLOSE)


@pytest.mark.parametrize("activation", ["sigmoid", "gelu", "softsign", "linear"])
def test_tangents_are_the_right_singular_vectors(activation, sizes, make_layers, rows, jacobians):
    layers = make_layers(sizes, mixed(activation, len(sizes) - 1))
    x, k = rows(4, sizes[0]), min(sizes)
    directions, values = tangents(layers, x, k)
    jacobian = jacobians(layers, x)
    _, expected, right = torch.linalg.svd(jacobian)
    torch.testing.assert_close(values, expected[:, :k], **CLOSE)
    identity = torch.eye(k, dtype=x.dtype).expand(4, k, k)
    torch.testing.assert_close(directions @ directions.mT, identity, **CLOSE)
    # a singular vector is one up to its sign
    overlap = (directions * right[:, :k]).sum(-1)
    torch.testing.assert_close(overlap.abs(), torch.ones_like(overlap), rtol=1e-7, atol=0)
    stretched = torch.linalg.vector_norm(jacobian @ directions.mT, dim=1)
    torch.testing.assert_close(stretched, values, **CLOSE)
    fewer, _ = tangents(layers, x, 1)
    torch.testing.assert_close(fewer, directions[:, :1], **CLOSE)


def test_the_largest_entry_of_a_tangent_is_positive_whatever_the_signs_of_the_units(make_layers, rows):
    ((weight, bias, _),) = make_layers((6, 4), ["linear"])
    x = rows(3, 6)
    directions, _ = tangents([(weight, bias, "linear")], x, 4)
    largest = directions.gather(-1, directions.abs().argmax(-1, keepdim=True))
    assert bool((largest > 0).all())
    flipped, _ = tangents([(-weight, bias, "linear")], x, 4)
    torch.testing.assert_close(flipped, directions, **CLOSE)


def test_tangents_of_a_unit_that_sees_one_direction():
    """h = tanh(w . x): the tangent is w / |w|, its singular value s |w|."""
    weight = torch.tensor([[3.0, 0.0, -4.0]], dtype=torch.float64)
    x = torch.tensor([[0.0, 5.0, 0.0], [0.2, 1.0, 0.0]], dtype=torch.float64)
    directions, values = tangents([(weight, None, "tanh")], x, 1)
    expected = torch.tensor([-0.6, 0.0, 0.8], dtype=torch.float64).expand(2, 1, 3)
    torch.testing.assert_close(directions, expected)
    slopes = torch.tensor([[1.0], [1.0 - math.tanh(0.6) ** 2]], dtype=torch.float64)
    torch.testing.assert_close(values, 5.0 * slopes)


@pytest.mark.parametrize("sizes", [(6, 4), (4, 7, 5), (6, 5, 4, 3)], ids=str)
def test_results_do_not_depend_on_the_workspace(workspace, sizes, make_layers, rows, jacobians):
    layers = make_layers(sizes, mixed("sigmoid", len(sizes) - 1))
    x = rows(9, sizes[0])
    jacobian = jacobians(layers, x)
    norms = torch.linalg.matrix_norm(jacobian)
    torch.testing.assert_close(jacobian_norm(layers, x, method="exact"), norms, **CLOSE)
    values = torch.linalg.svdvals(jacobian)[:, : min(sizes)]
    torch.testing.assert_close(jacobian_spectrum(layers, x), values.mean(0), **CLOSE)
    directions, singular = tangents(layers, x, 2)
    torch.testing.assert_close(singular, values[:, :2], **CLOSE)
    stretched = torch.linalg.vector_norm(jacobian @ directions.mT, dim=1)
    torch.testing.assert_close(stretched, singular, **CLOSE)


# The estimate -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [(6, 5), (5, 6, 4), (4, 5, 6, 3)], ids=str)
def test_the_estimates_square_is_unbiased(sizes, make_layers, rows, jacobians):
    layers = make_layers(sizes, mixed("sigmoid", len(sizes) - 1))
    x = rows(3, sizes[0]).repeat_interleave(4000, 0)
    g = torch.Generator().manual_seed(0)
    estimate = jacobian_norm(layers, x, method="estimate", probes=2, generator=g).square().view(3, -1)
    expected = jacobians(layers, x[::4000]).square().sum((1, 2))
    torch.testing.assert_close(estimate.mean(1), expected, rtol=0.03, atol=0)
    more = jacobian_norm(layers, x, method="estimate", probes=8, generator=g).square().view(3, -1)
    ratio = estimate.var(1) / more.var(1)
    assert bool(((ratio > 3) & (ratio < 5.4)).all()), ratio


def test_chunks_of_an_estimate_draw_probes_of_their_own(monkeypatch, make_layers, rows):
    from fastae.diagnostics import networks

    monkeypatch.setattr(networks, "WORKSPACE", 22)  # two rows of 6 + 5 codes
    layers = make_layers((4, 6, 5), ["sigmoid", "tanh"])
    g = torch.Generator().manual_seed(0)
    norms = jacobian_norm(layers, rows(1, 4).expand(20, 4), method="estimate", probes=1, generator=g)
    assert len(norms.unique()) > 6


def test_auto_is_exact_for_one_layer_and_for_narrow_stacks_and_an_estimate_for_wide_ones(make_layers, rows):
    for sizes, exact in (((70, 80), True), ((70, 66, 64), True), ((64, 80, 70), True), ((70, 66, 65), False)):
        layers = make_layers(sizes, ["sigmoid", "sigmoid"][: len(sizes) - 1])
        x = rows(3, sizes[0])
        norms = {
            method: jacobian_norm(layers, x, method=method, generator=torch.Generator().manual_seed(0))
            for method in ("auto", "exact", "estimate")
        }
        assert torch.equal(norms["auto"], norms["exact" if exact else "estimate"]), sizes
        assert not torch.equal(norms["exact"], norms["estimate"])


# The contraction curve ----------------------------------------------------------------------------------


def test_a_multiple_of_a_rotation_contracts_by_its_factor_at_every_radius(rows):
    rotation = torch.linalg.qr(rows(5, 5))[0]
    curve = contraction_curve([(0.3 * rotation, None, "linear")], rows(7, 5), [1e-3, 1.0, 50.0])
    torch.testing.assert_close(curve, torch.full((3,), 0.3, dtype=torch.float64), rtol=1e-9, atol=0)


def test_directions_are_uniform_on_the_sphere():
    """Seen through one coordinate in three dimensions |u_1| is uniform on [0, 1] (Archimedes)."""
    weight = torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64)
    x = torch.zeros(40_000, 3, dtype=torch.float64)
    g = torch.Generator().manual_seed(0)
    (mean,) = contraction_curve([(weight, None, "linear")], x, [2.0], generator=g)
    assert mean.item() == pytest.approx(0.5, abs=0.006)


def test_small_radii_see_the_jacobian_and_large_ones_the_saturation(make_layers, rows, apply, jacobians):
    layers = make_layers((6, 5, 4), ["sigmoid", "tanh"])
    x, radii = rows(8, 6), [1e-5, 0.5, 1e4]
    found = contraction_curve(layers, x, torch.tensor(radii), generator=torch.Generator().manual_seed(3))
    u = torch.randn(x.shape, generator=torch.Generator().manual_seed(3), dtype=x.dtype)
    u /= u.norm(dim=1, keepdim=True)
    moved = (jacobians(layers, x) @ u[..., None]).squeeze(-1).norm(dim=1).mean()
    assert found[0].item() == pytest.approx(moved.item(), rel=1e-4)
    ratio = ((apply(layers, x + 0.5 * u) - apply(layers, x)).norm(dim=1) / 0.5).mean()
    assert found[1].item() == pytest.approx(ratio.item(), rel=1e-9)
    assert 0.0 < found[2].item() <= 2 * 2 / 1e4  # four tanh units are at most 2 sqrt(4) apart


# What has an encoder ------------------------------------------------------------------------------------


def test_modules_and_layers_are_measured_alike(make_model, rows, jacobians):
    stack = make_model((6, 5, 4), activation=["sigmoid", "tanh"], loss=["bce", "mse"])
    layers = [(a.encoder.weight, a.encoder.bias, a.options.activation) for a in stack.autoencoders]
    x = rows(3, 6)
    expected = torch.linalg.matrix_norm(jacobians(layers, x))
    for model in (stack, stack.encoder(), layers, tuple(layers)):
        torch.testing.assert_close(jacobian_norm(model, x), expected, **CLOSE)
    expected = torch.linalg.matrix_norm(jacobians(layers[:1], x))
    bottom = stack.autoencoders[0]
    for model in (bottom, bottom.encoder, nn.Sequential(bottom.encoder), layers[:1]):
        torch.testing.assert_close(jacobian_norm(model, x), expected, **CLOSE)


def test_a_layer_without_a_bias(rows, jacobians):
    layer = EncoderLayer(6, 4, "silu", bias=False, dtype=torch.float64)
    x = rows(3, 6)
    expected = torch.linalg.svdvals(jacobians([(layer.weight, None, "silu")], x)).mean(0)
    torch.testing.assert_close(jacobian_spectrum(layer, x), expected, **CLOSE)
