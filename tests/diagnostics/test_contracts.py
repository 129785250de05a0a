"""Contracts of all diagnostics: dtypes, shapes, states left alone, arguments refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fastae
from fastae.diagnostics import (
    contraction_curve,
    diagnose,
    jacobian_norm,
    jacobian_spectrum,
    reconstruction_errors,
    score,
    tangents,
    vector_field,
)


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


A_ROW: dict[str, Callable[[Any, Tensor], Any]] = {
    "norm": jacobian_norm,
    "exact": lambda model, x: jacobian_norm(model, x, method="exact"),
    "estimate": lambda model, x: jacobian_norm(model, x, method="estimate", generator=seeded()),
    "tangents": lambda model, x: tangents(model, x, 2),
    "vector_field": vector_field,
    "score": lambda model, x: score(model, x, 0.5),
}
A_MEAN: dict[str, Callable[[Any, Tensor], Any]] = {
    "spectrum": jacobian_spectrum,
    "contraction_curve": lambda model, x: contraction_curve(model, x, [0.1, 1.0], generator=seeded()),
    "errors": reconstruction_errors,
}
ALL = A_ROW | A_MEAN


def parts(result: Any) -> tuple[Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


@pytest.fixture(params=ALL)
def measure(request) -> Callable[[Any, Tensor], tuple[Tensor, ...]]:
    return lambda model, x: parts(ALL[request.param](model, x))


@pytest.fixture(params=A_ROW)
def measure_rows(request) -> Callable[[Any, Tensor], tuple[Tensor, ...]]:
    return lambda model, x: parts(A_ROW[request.param](model, x))


@pytest.fixture(params=[(6, 4), (6, 5, 4)], ids=str)
def sizes(request):
    return request.param


def close(found: tuple[Tensor, ...], expected: tuple[Tensor, ...], **tolerances: float) -> None:
    torch.testing.assert_close(found, expected, **tolerances)


def test_the_names_are_exported():
    assert fastae.diagnostics.jacobian_norm is jacobian_norm
    assert all(hasattr(fastae.diagnostics, name) for name in fastae.diagnostics.__all__)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_other_dtypes_are_measured_in_float32(dtype, measure, sizes, make_model, rows):
    model, x = make_model(sizes, dtype=dtype), rows(7, 6).to(dtype)
    found = measure(model, x)
    assert all(part.dtype == torch.float32 for part in found)
    # one generator draws other numbers in another dtype: the same parameters and rows, widened
    close(found, measure(make_model(sizes).to(dtype).float(), x.float()))


def test_float32_agrees_with_float64(measure, sizes, make_model, rows, monkeypatch):
    model, x = make_model(sizes, dtype=torch.float32), rows(7, 6).float()
    draw = Tensor.normal_
    monkeypatch.setattr(  # the same directions in both
        Tensor, "normal_", lambda self, generator: self.copy_(draw(self.float(), generator=generator))
    )
    found = measure(model, x)
    expected = measure(model.double(), x.double())
    assert all(part.dtype == torch.float64 for part in expected)
    close(found, tuple(part.float() for part in expected), rtol=2e-4, atol=2e-5)


def test_noise_mode_gradients_and_parameters_are_left_alone(measure, sizes, make_model, rows):
    options = {"corruption": "masking:0.5", "dropout": 0.5, "code_noise": "gaussian"}
    noisy, clean, x = make_model(sizes, **options), make_model(sizes).eval(), rows(7, 6).requires_grad_()
    noisy.train()
    noisy.encode(x).sum().backward()
    before = {name: value.clone() for name, value in noisy.state_dict().items()}
    gradients = [None if p.grad is None else p.grad.clone() for p in noisy.parameters()]
    kept, state = x.detach().clone(), torch.get_rng_state()
    found = measure(noisy, x)
    assert not any(part.requires_grad for part in found)
    assert all(module.training for module in noisy.modules())
    assert not any(module.training for module in clean.modules())
    assert torch.is_grad_enabled() and torch.equal(state, torch.get_rng_state()) and torch.equal(x, kept)
    assert all(torch.equal(before[name], value) for name, value in noisy.state_dict().items())
    for parameter, gradient in zip(noisy.parameters(), gradients, strict=True):
        assert gradient is None if parameter.grad is None else torch.equal(parameter.grad, gradient)
    close(found, measure(clean, x))


def test_autocast_rounds_nothing(measure, sizes, make_model, rows):
    model, x = make_model(sizes, dtype=torch.float32), rows(7, 6).float()
    expected = measure(model, x)
    with torch.autocast("cpu", torch.bfloat16):
        found = measure(model, x)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_any_strides(measure, sizes, make_model, rows):
    model, x = make_model(sizes), rows(7, 6)
    padded = torch.full((14, 12), math.nan, dtype=x.dtype)
    padded[::2, ::2] = x
    expected = measure(model, x)
    for strided in (x.t().contiguous().t(), padded[::2, ::2]):
        assert not strided.is_contiguous()
        close(measure(model, strided), expected)
    one = measure(model, x[:1].repeat(7, 1))
    close(measure(model, x[:1].expand(7, 6)), one)


def test_leading_dimensions_are_rows(measure_rows, sizes, make_model, rows):
    model, x = make_model(sizes), rows(6, 6)
    flat = measure_rows(model, x)
    close(measure_rows(model, x.view(2, 3, 6)), tuple(part.view(2, 3, *part.shape[1:]) for part in flat))
    close(
        measure_rows(model, x.view(2, 3, 6).mT.contiguous().mT),
        tuple(p.view(2, 3, *p.shape[1:]) for p in flat),
    )


@pytest.mark.parametrize("name", sorted(A_ROW.keys() - {"estimate"}))
def test_one_row_is_measured_as_among_others(name, sizes, make_model, rows):
    model, x = make_model(sizes), rows(6, 6)
    flat = parts(A_ROW[name](model, x))
    close(parts(A_ROW[name](model, x[3:4])), tuple(part[3:4] for part in flat))
    close(parts(A_ROW[name](model, x[3])), tuple(part[3] for part in flat))


def test_no_rows_give_no_results(measure_rows, sizes, make_model):
    for shape in ((0, 6), (2, 0, 6)):
        for part in measure_rows(make_model(sizes), torch.zeros(shape, dtype=torch.float64)):
            assert part.shape[: len(shape) - 1] == shape[:-1] and part.numel() == 0


@pytest.mark.parametrize("name", A_MEAN)
def test_means_need_rows(name, sizes, make_model):
    with pytest.raises(ValueError, match=r"^x: needs at least 1 row, got shape \[0, 6\]"):
        A_MEAN[name](make_model(sizes), torch.zeros(0, 6, dtype=torch.float64))


def test_an_input_that_does_not_fit_is_named(measure, sizes, make_model, rows):
    model, x = make_model(sizes), rows(3, 6)
    for wrong, message in (
        (x[:, :5], r"x: expected shape \[\*, 6\] for the weight, got \[3, 5\]"),
        (x.sum(), r"x: expected shape \[\*, 6\]"),
        (x.float(), "x: is torch.float32, but the weight is torch.float64"),
        (x.long(), "x: expected a floating-point tensor, got torch.int64"),
        (x.to("meta"), "x: is on meta, but the weight on cpu"),
    ):
        with pytest.raises(ValueError, match=f"^{message}"):
            measure(model, wrong)
    with pytest.raises(TypeError, match=r"^x: expected a tensor, got list"):
        measure(model, x.tolist())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, x: jacobian_norm(m, x, method="fast"), "method: 'fast' is not one of auto, exact, estim"),
        (lambda m, x: jacobian_norm(m, x, probes=0), "probes: must be a whole number >= 1, got 0"),
        (lambda m, x: jacobian_norm(m, x, probes=1.5), "probes: must be a whole number >= 1, got 1.5"),
        (lambda m, x: jacobian_spectrum(m, x, 5), r"k: must be a whole number in 1..4, got 5"),
        (lambda m, x: jacobian_spectrum(m, x, 0), r"k: must be a whole number in 1..4, got 0"),
        (lambda m, x: tangents(m, x, 5), r"k: must be a whole number in 1..4, got 5"),
        (lambda m, x: tangents(m, x, 1.0), r"k: must be a whole number in 1..4, got 1.0"),
        (lambda m, x: contraction_curve(m, x, []), r"radii: expected positive finite distances, got \[\]"),
        (lambda m, x: contraction_curve(m, x, [1, 0]), r"radii: expected positive .*, got \[1, 0\]"),
        (lambda m, x: contraction_curve(m, x, [math.nan]), r"radii: expected positive .*, got \[nan\]"),
        (lambda m, x: contraction_curve(m, x, [math.inf]), r"radii: expected positive .*, got \[inf\]"),
    ],
)
def test_an_argument_that_does_not_fit_is_named(call, message, make_model, rows):
    with pytest.raises(ValueError, match=f"^{message}"):
        call(make_model((6, 5, 4)), rows(3, 6))


def test_integers_of_numpy_are_whole_numbers(make_model, rows):
    model, x = make_model((6, 5, 4)), rows(3, 6)
    assert jacobian_spectrum(model, x, np.int64(2)).equal(jacobian_spectrum(model, x, 2))
    seeds = [torch.Generator().manual_seed(0) for _ in range(2)]
    norms = [
        jacobian_norm(model, x, method="estimate", probes=n, generator=g)
        for n, g in zip((np.int32(2), 2), seeds, strict=True)
    ]
    assert norms[0].equal(norms[1])


@pytest.mark.parametrize("call", [lambda m, x: jacobian_spectrum(m, x), lambda m, x: tangents(m, x, 2)])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_decompositions_name_what_is_not_finite(call, value, make_model, rows):
    model, x = make_model((6, 5, 4)), rows(3, 6)
    x[1, 2:4] = value
    with pytest.raises(ValueError, match=r"^x: 2 entries are NaN or infinite"):
        call(model, x)
    with torch.no_grad():
        model.autoencoders[1].encoder.weight[0, 0] = value
    with pytest.raises(ValueError, match=r"^model's weights: 1 entries are NaN or infinite"):
        call(model, rows(3, 6))


def test_encoder_layers_may_come_in_a_list(make_model, rows):
    model, x = make_model((6, 5, 4)), rows(3, 6)
    assert torch.equal(jacobian_norm([a.encoder for a in model.autoencoders], x), jacobian_norm(model, x))


def test_a_model_that_does_not_fit_is_named(make_layers, rows):
    x, (first, second) = rows(3, 6), make_layers((6, 5, 4), ["tanh", "tanh"])
    for model in (nn.Linear(6, 4), nn.Sequential(nn.Linear(6, 4)), [first[0]], "tanh", None):
        with pytest.raises(
            TypeError, match=r"^model: expected an Autoencoder, a StackedAutoencoder, EncoderL"
        ):
            jacobian_norm(model, x)  # pyright: ignore[reportArgumentType]
    for model, message in (
        ([], "model: needs at least one layer"),
        (nn.Sequential(), "model: needs at least one layer"),
        ([first, first], r"code: expected shape \[\*, 6\] for the weight, got \[0, 5\]"),
        (
            [first, (second[0].float(), None, "tanh")],
            "code: is torch.float64, but the weight is torch.float32",
        ),
        ([first, (second[0], first[1], "tanh")], r"bias: expected shape \[4\], got \[5\]"),
        ([first, (*second[:2], "swish")], "activation: 'swish' is not one of"),
    ):
        with pytest.raises(ValueError, match=f"^{message}"):
            jacobian_norm(model, x)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_results_are_the_same_on_a_gpu(measure, sizes, make_model, rows, request):
    if any(name in request.node.name for name in ("contraction", "estimate", "tangents")):
        pytest.skip("draws other numbers there, or may choose other signs")
    model, x = make_model(sizes), rows(7, 6)
    expected = measure(model, x)
    found = measure(model.cuda(), x.cuda())
    assert all(part.is_cuda for part in found)
    close(tuple(part.cpu() for part in found), expected)
    assert diagnose(model, x.cuda())["rows"] == 7
