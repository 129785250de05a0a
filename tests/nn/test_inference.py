"""Inference without gradients calls what a plain layer calls, and no operator more."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from fastae import functional, fuse
from fastae.activations import ACTIVATIONS
from fastae.nn import Autoencoder, EncoderLayer, StackedAutoencoder
from fastae.nn.fusion import _MODULES

VIEWS = {"aten.t.default", "aten.detach.default", "aten.view.default", "aten.transpose.int"}


class Operators(TorchDispatchMode):
    """The operators that are called, without views."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if str(func) not in VIEWS:
            self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def operators(function: Callable[[Tensor], Tensor], x: Tensor) -> list[str]:
    with torch.no_grad(), Operators() as called:
        function(x)
    return called.names


def out_of_place(names: list[str]) -> list[str]:
    return [name.replace("_.default", ".default") for name in names]


def pair(name: str, features: int = 6, units: int = 5) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(features, units), _MODULES[name]())


@pytest.mark.parametrize("leading", [(3,), (2, 3)], ids=str)
@pytest.mark.parametrize("name", _MODULES)
def test_a_layer_calls_the_operators_of_the_plain_pair(name, leading):
    plain, x = pair(name), torch.rand(*leading, 6) - 0.5
    linear = plain[0]
    assert isinstance(linear, nn.Linear)
    layer = EncoderLayer.from_linear(linear, name)

    def encode(x: Tensor) -> Tensor:
        return functional.encode(x, layer.weight, layer.bias, name)

    expected = out_of_place(operators(plain, x))
    for function in (layer, fuse(plain), encode):
        assert out_of_place(operators(function, x)) == expected
        with torch.no_grad():
            torch.testing.assert_close(function(x), plain(x))


@pytest.mark.parametrize("name", [name for name in _MODULES if ACTIVATIONS[name].inplace is not None])
def test_the_activation_takes_the_memory_of_the_product(name):
    *_, last = operators(EncoderLayer(6, 5, name), torch.rand(3, 6))
    assert last.removesuffix(".default").endswith("_"), last


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_autoencoders_and_stacks_call_one_product_and_one_activation_a_layer(tied):
    x = torch.rand(3, 6)
    one = ["aten.addmm.default", "aten.sigmoid_.default"]
    layer, stack = Autoencoder(6, 5, tied=tied), StackedAutoencoder([6, 5, 4], tied=tied)
    assert operators(layer.encode, x) == operators(lambda x: stack.encode(x, 1), x) == one
    assert operators(layer.reconstruct, x) == operators(stack.encode, x) == 2 * one
    assert operators(stack.reconstruct, x) == 4 * one
