"""Principal angles and components, and the subspace a linear autoencoder finds."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fastae.diagnostics import pca_angles, principal_angles, principal_components
from fastae.nn import Autoencoder


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def tilted(degrees: list[float]) -> tuple[Tensor, Tensor]:
    """Two subspaces of 2 k dimensions with these angles, behind a rotation and other columns of their own."""
    k = len(degrees)
    rotation = torch.linalg.qr(normal(2 * k, 2 * k))[0]
    radians = torch.deg2rad(torch.tensor(degrees, dtype=torch.float64))
    other = torch.cat([radians.cos().diag(), radians.sin().diag()])
    return rotation[:, :k] @ normal(k, k, seed=1), rotation @ other @ normal(k, k, seed=2)


@pytest.mark.parametrize("degrees", [[90.0, 60.0, 1.0], [45.0, 44.9], [90.0, 90.0], [30.0], [0.0, 0.0]])
def test_angles_of_subspaces_that_are_tilted_by_them(degrees):
    a, b = tilted(degrees)
    expected = torch.tensor(degrees, dtype=torch.float64)
    torch.testing.assert_close(principal_angles(a, b), expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(principal_angles(b, a), expected, rtol=1e-10, atol=1e-12)


def test_small_and_nearly_right_angles_keep_their_digits():
    a, b = tilted([90.0 - 1e-9, 1e-9])
    right, small = principal_angles(a, b).tolist()
    assert 90.0 - right == pytest.approx(1e-9, rel=1e-3)
    assert small == pytest.approx(1e-9, rel=1e-3)


def test_angles_agree_with_scipy():
    linalg = pytest.importorskip("scipy.linalg")
    a, b = normal(9, 4), normal(9, 2, seed=1)
    expected = torch.rad2deg(torch.from_numpy(linalg.subspace_angles(a.numpy(), b.numpy())))
    torch.testing.assert_close(principal_angles(a, b), expected)
    torch.testing.assert_close(principal_angles(b, a), expected)


def test_principal_components_are_those_of_the_covariance(workspace):
    x = normal(200, 5) @ normal(5, 5, seed=1) + 100.0
    values, vectors = principal_components(x.view(20, 10, 5))
    covariance = torch.cov(x.T, correction=0)
    torch.testing.assert_close(vectors @ values.diag() @ vectors.T, covariance)
    torch.testing.assert_close(vectors.T @ vectors, torch.eye(5, dtype=x.dtype))
    assert bool((values.diff() <= 0).all())


@pytest.fixture(scope="module")
def data() -> Tensor:
    """400 rows in 8 dimensions, 3 of large variance, away from the origin."""
    scale = torch.tensor([3.0, 2.5, 2.0, 0.5, 0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
    return (normal(400, 8) * scale) @ torch.linalg.qr(normal(8, 8, seed=1))[0] + 1.5


@pytest.mark.parametrize("tied", [False, True])
def test_a_trained_linear_autoencoder_spans_the_principal_subspace(data, tied):
    torch.manual_seed(0)
    model = Autoencoder(8, 3, activation="linear", loss="mse", tied=tied, dtype=torch.float64)
    assert pca_angles(model, data)[0] > 20.0
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=300, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = model(data).total
        loss.backward()
        return loss

    optimizer.step(closure)  # pyright: ignore[reportArgumentType]
    angles = pca_angles(model, data)
    assert angles.shape == (3,) and bool((angles.diff() <= 0).all())
    assert angles[0] < 0.1
    torch.testing.assert_close(angles, pca_angles(model.decoder_weight, data))
    best = principal_components(data)[0][3:].sum()
    torch.testing.assert_close(model(data).total.detach(), best, rtol=1e-5, atol=0)


def test_angles_of_a_decoder_by_hand():
    """Variance 4 along the first axis and 1 along the second; the decoder points 30 degrees off the first."""
    x = torch.tensor([[2.0, 1.0], [2.0, -1.0], [-2.0, 1.0], [-2.0, -1.0]]) + 7.0
    weight = torch.tensor([[math.cos(math.pi / 6)], [math.sin(math.pi / 6)]]) * 5.0
    assert pca_angles(weight, x).tolist() == pytest.approx([30.0], rel=1e-5)


def test_a_linear_stack_spans_its_product(data, make_model):
    stack = make_model((8, 5, 3), activation="linear", loss="mse", tied=False)
    first, second = stack.autoencoders
    product = first.decoder_weight @ second.decoder_weight
    torch.testing.assert_close(pca_angles(stack, data), pca_angles(product, data))


def test_what_does_not_fit_is_named(data, make_model):
    square, flat = normal(4, 4), normal(4, 2)
    for call, message in (
        (lambda: principal_angles(square, flat[:3]), r"b: expected \[4, k\]"),
        (lambda: principal_angles(square, flat.float()), r"b: expected \[4, k\] in torch.float64"),
        (lambda: principal_angles(flat[0], flat), "a: expected two dimensions"),
        (lambda: principal_angles(flat, flat[:, [0, 0]]), "b: its 2 columns span only 1 dimensions"),
        (lambda: principal_angles(normal(2, 3), flat[:2]), "a: its 3 columns span only 2 dimensions"),
        (lambda: principal_angles(0.0 * flat, flat), "a: its 2 columns span only 0 dimensions"),
        (lambda: principal_components(data[:0]), "x: needs at least 1 row"),
        (lambda: pca_angles(flat, data), r"x: expected shape \[\*, 4\] for the decoder"),
        (lambda: pca_angles(flat[:, 0], data), "model: expected a decoder weight"),
        (lambda: pca_angles(make_model((8, 8)), data), "model: expected a decoder weight .* fewer units"),
        (lambda: pca_angles(make_model((8, 5, 3)), data), "model: an inner layer of its decoder is sigmoid"),
    ):
        with pytest.raises(ValueError, match=f"^{message}"):
            call()
    with pytest.raises(TypeError, match=r"^model: expected an Autoencoder or a StackedAutoencoder"):
        pca_angles(make_model((8, 3)).encoder, data)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_columns_keep_their_rank(dtype):
    a, b = torch.randn(2, 784, 20, generator=torch.Generator().manual_seed(0)).to(dtype)
    found = principal_angles(a, b)
    assert found.dtype is torch.float32
    torch.testing.assert_close(found, principal_angles(a.float(), b.float()))


def test_data_without_a_principal_subspace_are_named():
    g = torch.Generator().manual_seed(0)
    weight = torch.randn(8, 4, generator=g)
    for x, varied in ((torch.full((50, 8), 3.7), 0), (torch.randn(2, 8, generator=g), 1)):
        with pytest.raises(ValueError, match=f"^x: varies in {varied} dimensions only"):
            pca_angles(weight, x)
    line = torch.randn(50, 1, generator=g) * torch.randn(1, 8, generator=g) + 100.0
    assert pca_angles(weight[:, :1], line).shape == (1,)
    for matrix in (weight, weight.T):
        with pytest.raises(ValueError, match=r"^b: 32 entries are NaN or infinite"):
            principal_angles(matrix, matrix * math.nan)


def test_half_precision_is_measured_in_float32(data):
    weight = normal(8, 3, seed=4).bfloat16()
    angles = pca_angles(weight, data.bfloat16())
    assert angles.dtype == torch.float32
    torch.testing.assert_close(angles, pca_angles(weight.float(), data.bfloat16().float()))
