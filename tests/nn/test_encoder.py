"""EncoderLayer: a drop-in nn.Linear with an activation."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from fastae import functional, reference
from fastae.activations import ACTIVATIONS
from fastae.nn import EncoderLayer

EVERY = pytest.mark.parametrize("activation", ACTIVATIONS)


def layer(activation: str = "sigmoid", **arguments) -> EncoderLayer:
    torch.manual_seed(1)
    return EncoderLayer(5, 4, activation, dtype=torch.float64, **arguments)


def rows(*leading: int) -> torch.Tensor:
    g = torch.Generator().manual_seed(2)
    return torch.randn(*leading, 5, generator=g, dtype=torch.float64)


def test_it_is_a_linear_layer_of_the_same_initialisation():
    torch.manual_seed(0)
    linear = nn.Linear(5, 4)
    torch.manual_seed(0)
    encoder = EncoderLayer(5, 4)
    assert isinstance(encoder, nn.Linear)
    assert encoder.activation == "sigmoid"
    torch.testing.assert_close(dict(encoder.state_dict()), dict(linear.state_dict()), rtol=0, atol=0)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("direction", ["from linear", "to linear"])
def test_state_dicts_interchange_with_linear(bias, direction):
    pair = nn.Linear(5, 4, bias), EncoderLayer(5, 4, "tanh", bias)
    source, target = pair if direction == "from linear" else pair[::-1]
    assert not torch.equal(source.weight, target.weight)
    assert list(source.state_dict()) == list(target.state_dict()) == ["weight", "bias"][: 1 + bias]
    target.load_state_dict(source.state_dict())
    torch.testing.assert_close(dict(target.state_dict()), dict(source.state_dict()), rtol=0, atol=0)


@EVERY
@pytest.mark.parametrize("bias", [True, False])
def test_the_code_and_its_gradients_are_those_of_the_activation_of_the_linear_layer(activation, bias):
    fused, x = layer(activation, bias=bias), rows(6).requires_grad_()
    plain = nn.Linear(5, 4, bias, dtype=torch.float64)
    plain.load_state_dict(fused.state_dict())
    y = x.detach().clone().requires_grad_()

    code, expected = fused(x), ACTIVATIONS[activation].function(plain(y))
    torch.testing.assert_close(code, expected)
    upstream = torch.randn(6, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    code.backward(upstream)
    expected.backward(upstream)
    torch.testing.assert_close(x.grad, y.grad)
    for own, other in zip(fused.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(own.grad, other.grad)


@EVERY
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_contractive_is_the_functional_with_the_layers_own_parameters(activation, reduction):
    encoder, x = layer(activation), rows(3, 2)
    code, penalty = encoder.contractive(x, reduction=reduction)
    expected = functional.contractive_encode(x, encoder.weight, encoder.bias, activation, reduction=reduction)
    torch.testing.assert_close((code, penalty), expected, rtol=0, atol=0)
    torch.testing.assert_close(code, encoder(x))


def test_contractive_defaults_to_the_mean_of_the_squared_jacobian():
    encoder, x = layer("tanh"), rows(6)
    jacobians = torch.func.vmap(torch.func.jacrev(lambda row: torch.tanh(nn.Linear.forward(encoder, row))))(x)
    _, penalty = encoder.contractive(x)
    torch.testing.assert_close(penalty, jacobians.square().sum((1, 2)).mean())


@pytest.mark.parametrize("leading", [(), (3,), (2, 3), (2, 1, 3), (0,), (2, 0)], ids=str)
def test_any_leading_dimensions_as_linear_takes_them(leading):
    encoder, x = layer("tanh"), rows(*leading)
    expected = torch.tanh(nn.Linear.forward(encoder, x))
    torch.testing.assert_close(encoder(x), expected)
    code, penalty = encoder.contractive(x, reduction="none")
    torch.testing.assert_close(code, expected)
    assert penalty.shape == leading
    flat = reference.contractive_penalty(x.reshape(-1, 5), encoder.weight, encoder.bias, "tanh")
    torch.testing.assert_close(penalty.reshape(-1), flat)


def test_inputs_of_any_strides():
    encoder, x = layer("tanh"), rows(5, 3, 2).transpose(0, 1)[..., ::2, :]
    assert not x.is_contiguous()
    torch.testing.assert_close(encoder(x), encoder(x.contiguous()))
    transposed = rows(5).t()
    torch.testing.assert_close(encoder(transposed), encoder(transposed.contiguous()))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("training", [True, False])
def test_from_linear_shares_the_parameter_objects(bias, dtype, training):
    linear = nn.Linear(5, 4, bias, dtype=dtype).train(training)
    linear.weight.requires_grad_(False)
    encoder = EncoderLayer.from_linear(linear, "silu")
    assert type(encoder) is EncoderLayer
    assert encoder.weight is linear.weight
    assert encoder.bias is linear.bias
    assert list(encoder.state_dict()) == list(linear.state_dict())
    assert (encoder.in_features, encoder.out_features, encoder.training) == (5, 4, training)
    x = rows(3).to(dtype)
    torch.testing.assert_close(encoder(x), nn.functional.silu(linear(x)))


def test_from_linear_of_a_subclass_makes_that_subclass():
    class Named(EncoderLayer):
        pass

    assert type(Named.from_linear(nn.Linear(5, 4), "tanh")) is Named


@pytest.mark.parametrize(
    "make",
    [
        lambda name: EncoderLayer(5, 4, name),
        lambda name: EncoderLayer.from_linear(nn.Linear(5, 4), name),
    ],
    ids=["constructor", "from_linear"],
)
@pytest.mark.parametrize("name", ["swish", None, "Sigmoid"])
def test_an_unknown_activation_is_named_with_the_known_ones(make, name):
    with pytest.raises(ValueError, match=f"^activation: {name!r} is not one of linear, sigmoid, .*relu6$"):
        make(name)


def test_a_wrong_width_is_named():
    with pytest.raises(ValueError, match=r"^x: expected shape \[\*, 5\] for the weight, got \[3, 6\]$"):
        layer()(torch.zeros(3, 6, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_dtype_argument(dtype):
    encoder = EncoderLayer(5, 4, dtype=dtype)
    assert {p.dtype for p in encoder.parameters()} == {dtype}
    assert encoder(torch.zeros(2, 5, dtype=dtype)).dtype == dtype


def test_device_argument():
    encoder = EncoderLayer(5, 4, "tanh", device="meta")
    assert {p.device.type for p in encoder.parameters()} == {"meta"}
    values = layer("tanh").float().state_dict()
    encoder = encoder.to_empty(device="cpu")
    encoder.load_state_dict(values)
    torch.testing.assert_close(encoder(rows(3).float()), layer("tanh")(rows(3)).float())


def test_shapes_on_the_meta_device_as_linear_infers_them():
    encoder = EncoderLayer(5, 4, "tanh", device="meta")
    code = encoder(torch.empty(2, 3, 5, device="meta"))
    assert code.device.type == "meta"
    assert code.shape == (2, 3, 4)


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"]
)
@pytest.mark.parametrize("bias", [True, False])
def test_duplicates_are_equal_and_independent(duplicate, bias):
    encoder = layer("gelu", bias=bias)
    twin = duplicate(encoder)
    assert twin.activation == "gelu"
    expected = encoder(rows(3)).detach()
    torch.testing.assert_close(twin(rows(3)), expected)
    with torch.no_grad():
        twin.weight.zero_()
    torch.testing.assert_close(encoder(rows(3)), expected)


@pytest.mark.parametrize("bias", [True, False])
def test_repr_is_linears_with_the_activation(bias):
    text = f"EncoderLayer(in_features=5, out_features=4, bias={bias}, activation='elu')"
    assert repr(EncoderLayer(5, 4, "elu", bias)) == text
