"""Errors of the functions: second derivatives and arguments that do not fit."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from fastae import Emphasis, Gaussian, functional

# --- second derivatives ---------------------------------------------------------------------------------

NO_SECOND = "fastae's fused operators have no second derivative; the functions of fastae.reference can"


def with_gradients(call, leaves: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    value = sum((out.square().sum() for out in call(*leaves, "none")), torch.zeros(()))
    gradients = torch.autograd.grad(value, leaves, create_graph=True, allow_unused=True)
    return value, [g for g in gradients if g is not None]


def test_second_derivative_raises(call, parameters):
    _, gradients = with_gradients(call, parameters(5, 6, 6).leaves())
    assert gradients
    for gradient in gradients:
        with pytest.raises(RuntimeError, match=NO_SECOND):
            gradient.square().sum().backward(retain_graph=True)


def test_second_derivative_is_not_dropped_beside_a_first(call, parameters):
    """A gradient penalty added to the loss: autograd visits only what leads to the chosen inputs."""
    leaves = parameters(5, 6, 6).leaves()
    value, gradients = with_gradients(call, leaves)
    for gradient in gradients:
        with pytest.raises(RuntimeError, match=NO_SECOND):
            total = value + gradient.square().sum()
            torch.autograd.grad(total, leaves, retain_graph=True, allow_unused=True)


def test_hessian_raises_rather_than_vanishes(parameters):
    x, w, b, *_ = parameters(5, 6, 6)
    with pytest.raises(RuntimeError, match=NO_SECOND):
        torch.autograd.functional.hessian(lambda t: functional.encode(t, w, b).sum(), x)


def test_second_derivative_raises_for_the_upstream_gradient(call, parameters):
    leaves = parameters(5, 6, 6).leaves()
    outputs = call(*leaves, "none")
    upstream = [torch.ones_like(out, requires_grad=True) for out in outputs]
    gradients = torch.autograd.grad(outputs, leaves, upstream, create_graph=True, allow_unused=True)
    for gradient in (g for g in gradients if g is not None):
        with pytest.raises(RuntimeError, match=NO_SECOND):
            torch.autograd.grad(gradient.sum(), upstream, retain_graph=True, allow_unused=True)


def test_creating_a_graph_changes_no_first_derivative(call, parameters):
    leaves = parameters(5, 6, 6).leaves()
    gradients = []
    for create_graph in (False, True):
        torch.manual_seed(0)
        outputs = [out.sum() for out in call(*leaves, "mean")]
        results = torch.autograd.grad(outputs, leaves, create_graph=create_graph, materialize_grads=True)
        gradients.append([gradient.detach() for gradient in results])
    assert all(torch.equal(one, two) for one, two in zip(*gradients, strict=True))


# --- arguments ------------------------------------------------------------------------------------------

X, W, B = torch.zeros(5, 7), torch.zeros(6, 7), torch.zeros(6)
V, C = torch.zeros(7, 6), torch.zeros(7)
CODE, INTEGERS = torch.zeros(5, 6), torch.zeros(5, 7, dtype=torch.int64)

Errors = dict[str, dict[str, Any]]

ENCODER_ERRORS: Errors = {
    "x: expected shape [*, 7] for the weight, got [5, 6]": {"x": CODE},
    "x: expected shape [*, 7] for the weight, got []": {"x": torch.zeros(())},
    "x: is torch.float64, but the weight is torch.float32": {"x": X.double()},
    "x: is on cpu, but the weight on meta": {"weight": W.to("meta"), "bias": B.to("meta")},
    "x: expected a floating-point tensor, got torch.int64": {"x": INTEGERS},
    "weight: expected a floating-point tensor, got torch.int64": {"weight": W.long()},
    "weight: expected two dimensions [out, in], got shape [7]": {"weight": W[0]},
    "bias: expected shape [6], got [7]": {"bias": C},
    "bias: expected shape [6], got [1, 6]": {"bias": B[None]},
    "bias: is torch.float64, but the weight is torch.float32": {"bias": B.double()},
    "activation: 'swish' is not one of linear, sigmoid": {"activation": "swish"},
}
OBJECTIVE_ERRORS: Errors = {
    "decoder_weight: expected shape [7, 6], got [6, 7]": {"decoder_weight": W},
    "decoder_weight: is torch.float64, but": {"decoder_weight": V.double()},
    "decoder_bias: expected shape [7], got [6]": {"decoder_bias": B},
    "decoder_bias: is on meta, but the weight on cpu": {"decoder_bias": C.to("meta")},
    "loss: 'mae' is not one of mse, huber, bce": {"loss": "mae"},
    "output_activation: 'swish' is not one of": {"loss": "mse", "output_activation": "swish"},
    "output_activation: bce applies the sigmoid itself": {"output_activation": "sigmoid"},
    "reduction: 'max' is not one of mean, sum, none": {"reduction": "max"},
    "code_noise: 'uniform' is not one of none, gaussian, bernoulli": {"code_noise": "uniform"},
    "code_noise: needs codes in [0, 1]": {"code_noise": "bernoulli", "activation": "relu"},
    "code_noise_std: must be a finite number >= 0, got -1.0": {"code_noise_std": -1.0},
    "corruption: expected Masking, Gaussian, SaltAndPepper, Swap or None, got str": {"corruption": "swap:1"},
    "emphasis: needs a corruption": {"emphasis": Emphasis()},
    "emphasis: needs a corruption that": {"emphasis": Emphasis(), "corruption": Gaussian(0.1)},
    "contractive: must be a finite number >= 0, got -0.1": {"contractive": -0.1},
    "contractive: must be a finite number >= 0, got nan": {"contractive": math.nan},
    "higher_order: must be a finite number >= 0, got inf": {"higher_order": math.inf},
    "higher_order: needs higher_order_samples in 1..4080 and higher_order_std > 0, got 0 and 0.1": {
        "higher_order": 0.1,
        "higher_order_samples": 0,
    },
    "higher_order: needs higher_order_samples in 1..4080 and higher_order_std > 0, got 1 and 0.0": {
        "higher_order": 0.1,
        "higher_order_std": 0.0,
    },
    "l1: must be a finite number >= 0, got -1": {"l1": -1},
    "kl: must be a finite number >= 0, got -1": {"kl": -1},
    "kl: needs codes in [0, 1] (activation='sigmoid'), got": {"kl": 0.1, "activation": "tanh"},
    "kl: must be a finite number >= 0, got 'x'": {"kl": "x"},
    "kl_target: must be in (0, 1), got 1.0": {"kl": 0.1, "kl_target": 1.0},
    "kl_target: must be in (0, 1), got 'x'": {"kl": 0.1, "kl_target": "x"},
    "l1: must be a finite number >= 0, got [0.1, 0.2]": {"l1": [0.1, 0.2]},
    "contractive: must be a finite number >= 0, got tensor([1., 2.])": {
        "contractive": torch.tensor([1.0, 2.0])
    },
    "dropout: must be in [0, 1), got None": {"dropout": None},
    "dropout: must be in [0, 1), got 1.0": {"dropout": 1.0},
    "dropout: must be in [0, 1), got -0.1": {"dropout": -0.1},
    "target: expected shape [5, 7], got [5, 6]": {"target": CODE},
    "target: expected a floating-point tensor, got torch.int64": {"target": INTEGERS},
    "target: is on meta, but the input on cpu": {"target": X.to("meta")},
}
RECONSTRUCTION_ERRORS: Errors = {
    "code: expected shape [*, 6] for the weight, got [5, 7]": {"code": X},
    "weight: expected two dimensions": {"weight": C},
    "bias: expected shape [7], got [6]": {"bias": B},
    "target: expected shape [5, 7], got [5, 6]": {"target": CODE},
    "entry_weight: expected a shape that broadcasts to [5, 7], got [5]": {"entry_weight": X[:, 0]},
    "entry_weight: expected a shape that broadcasts to [5, 7], got [1, 5, 7]": {"entry_weight": X[None]},
    "entry_weight: expected a floating-point tensor, got torch.bool": {"entry_weight": X > 0.5},
    "entry_weight: is on meta, but the input on cpu": {"entry_weight": X.to("meta")},
    "entry_weight: expected weights of features, got [5, 1]; those of whole rows do not change cosine": {
        "entry_weight": X[:, :1],
        "loss": "cosine",
    },
    "loss: 'l2' is not one of mse, huber, bce": {"loss": "l2"},
    "reduction: 'max' is not one of mean, sum, none": {"reduction": "max"},
    "output_activation: bce applies the sigmoid itself": {"output_activation": "sigmoid"},
}


def raises(message: str):
    return pytest.raises(ValueError, match="^" + re.escape(message))


@pytest.mark.parametrize("message", ENCODER_ERRORS)
def test_wrong_argument_of_an_encoder_is_named(message: str):
    arguments = {"x": X, "weight": W, "bias": B} | ENCODER_ERRORS[message]
    with raises(message):
        functional.encode(**arguments)
    with raises(message):
        functional.contractive_encode(**arguments)
    with raises(message):
        functional.autoencoder_loss(**arguments, decoder_weight=V, decoder_bias=C)


@pytest.mark.parametrize("message", OBJECTIVE_ERRORS)
def test_wrong_argument_of_the_objective_is_named(message: str):
    with raises(message):
        functional.autoencoder_loss(
            X, W, B, **{"decoder_weight": V, "decoder_bias": C} | OBJECTIVE_ERRORS[message]
        )


@pytest.mark.parametrize("message", RECONSTRUCTION_ERRORS)
def test_wrong_argument_of_the_reconstruction_loss_is_named(message: str):
    arguments = {"code": CODE, "weight": V, "bias": C, "target": X} | RECONSTRUCTION_ERRORS[message]
    with raises(message):
        functional.reconstruction_loss(**arguments)


def test_wrong_reduction_of_the_penalty_is_named():
    with raises("reduction: 'max' is not one of mean, sum, none"):
        functional.contractive_encode(X, W, B, reduction="max")


@pytest.mark.parametrize("name", ["x", "weight"])
def test_things_that_are_no_tensors_are_refused(name: str):
    arguments: dict[str, Any] = {"x": X, "weight": W, name: [[0.0] * 7]}
    with pytest.raises(TypeError, match=f"^{name}: expected a tensor, got list"):
        functional.encode(**arguments)
