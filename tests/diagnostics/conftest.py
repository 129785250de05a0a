"""Small float64 networks with weights of size 1, where a wrong factor shows, and their true Jacobians."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastae.diagnostics import networks
from fastae.nn import Autoencoder, StackedAutoencoder
from tests.support import PLAIN

Layers = list[tuple[Tensor, Tensor | None, str]]


def _layers(sizes: Sequence[int], activations: Sequence[str], seed: int = 0) -> Layers:
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g, dtype=torch.float64)

    return [
        (normal(h, d), normal(h), activation)
        for d, h, activation in zip(sizes, sizes[1:], activations, strict=False)
    ]


def _apply(layers: Layers, x: Tensor) -> Tensor:
    for weight, bias, activation in layers:
        x = PLAIN[activation](F.linear(x, weight, bias))
    return x


@pytest.fixture(scope="session")
def plain() -> dict[str, Callable[[Tensor], Tensor]]:
    """The activations, by PyTorch's own functions."""
    return PLAIN


@pytest.fixture(scope="session")
def make_layers() -> Callable[..., Layers]:
    """A factory: (sizes, activations, seed) to layers with biases."""
    return _layers


@pytest.fixture(scope="session")
def apply() -> Callable[[Layers, Tensor], Tensor]:
    """The code of layers by PyTorch's own functions."""
    return _apply


@pytest.fixture(scope="session")
def jacobians() -> Callable[[Layers, Tensor], Tensor]:
    """The true Jacobian of each row, [M, H, D]."""

    def compute(layers: Layers, x: Tensor) -> Tensor:
        return torch.func.vmap(torch.func.jacrev(partial(_apply, layers)))(x)

    return compute


@pytest.fixture(scope="session")
def rows() -> Callable[..., Tensor]:
    """A factory of x [M, D] in [0, 1]."""

    def make(count: int, features: int, seed: int = 1) -> Tensor:
        g = torch.Generator().manual_seed(seed)
        return torch.rand(count, features, generator=g, dtype=torch.float64)

    return make


@pytest.fixture(scope="session")
def make_model() -> Callable[..., Autoencoder | StackedAutoencoder]:
    """A factory: an ``Autoencoder`` of two sizes or a stack of more, from ``sizes`` and options."""

    def make(
        sizes: Sequence[int], *, seed: int = 0, dtype: torch.dtype = torch.float64, **options: Any
    ) -> Autoencoder | StackedAutoencoder:
        model = (
            Autoencoder(*sizes, dtype=dtype, **options)
            if len(sizes) == 2
            else StackedAutoencoder(sizes, dtype=dtype, **options)
        )
        g = torch.Generator().manual_seed(seed)
        for parameter in model.parameters():
            parameter.data.copy_(torch.randn(parameter.shape, generator=g, dtype=torch.float64))
        return model

    return make


@pytest.fixture(params=[1, 14, 40, 1 << 22])
def workspace(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Everything in the smallest pieces, in some, and at once."""
    monkeypatch.setattr(networks, "WORKSPACE", request.param)
    return request.param
