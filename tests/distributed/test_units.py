"""Layers whose units are spread over processes train as whole layers do: losses and parameters."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fastae import Emphasis, Gaussian, Masking, Swap
from fastae.activations import ACTIVATIONS
from fastae.distributed import full_state_dict, gather_units, shard_units
from fastae.nn import Autoencoder, EncoderLayer
from tests.distributed.group import Failed

ROWS, WIDTH, UNITS, TOLERANCE = 9, 7, 50, 1e-10  # 50 units are 16, 32 or 2 per process

CASES: dict[str, dict[str, Any]] = {
    **{
        f"{name} {loss}": {"activation": name, "loss": loss, "contractive": 0.1}
        for name, loss in zip(ACTIVATIONS, ("bce", "mse", "huber") * len(ACTIVATIONS), strict=False)
    },
    "untied": {"tied": False, "contractive": 0.1, "dropout": 0.3},
    "no biases": {"bias": False, "l1": 0.1},
    "tanh output": {"loss": "mse", "output_activation": "tanh", "tied": False},
    "masking": {"corruption": Masking(0.3), "emphasis": Emphasis(1.0, 0.5)},
    "swap": {"corruption": Swap(0.4), "l1": 0.1},
    "gaussian": {"corruption": Gaussian(0.1), "higher_order": 0.2, "higher_order_samples": 2},
    "dropout": {"dropout": 0.4, "activation": "silu", "contractive": 0.1, "l1": 0.1},
    "gaussian code": {"code_noise": "gaussian", "dropout": 0.2, "loss": "mse"},
    "bernoulli code": {"code_noise": "bernoulli"},
    "kl": {"kl": 0.5, "kl_target": 0.2, "l1": 0.1, "contractive": 0.1},
}


def layer(options: dict[str, Any]) -> Autoencoder:
    torch.manual_seed(0)
    made = Autoencoder(WIDTH, UNITS, dtype=torch.float64, **options)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return made


def rows() -> Tensor:
    return torch.rand(3, ROWS, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


Trained = tuple[list[Tensor], dict[str, Tensor]]


def trained(module: Any, reduction: str = "mean") -> Trained:
    """Losses of three steps, gradients to rows, and the parameters in the end."""
    optimizer, seen = torch.optim.AdamW(module.parameters(), 0.05, weight_decay=0.1), []
    corruption = module.options.corruption
    for step, x in enumerate(rows()):
        torch.manual_seed(step)
        x.requires_grad_(corruption is None or corruption.kind != "swap")
        optimizer.zero_grad()
        terms = module(x, reduction=reduction)
        terms.total.sum().backward()
        optimizer.step()
        seen += [term.detach() for term in (*terms, x.grad) if term is not None]
    return seen, full_state_dict(module)


def spread(options: dict[str, Any], reduction: str = "mean") -> Trained:
    module = shard_units(layer(options))
    assert len(module.encoder.weight) < UNITS and module.code_features == UNITS
    return trained(module, reduction)


@pytest.mark.parametrize("case", CASES)
def test_two_processes_train_the_layer_of_one(two, case):
    expected = trained(layer(CASES[case]))
    for result in two.run(spread, CASES[case]):
        torch.testing.assert_close(result, expected, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("reduction", ["sum", "none"])
@pytest.mark.parametrize("case", ["untied", "gaussian", "dropout", "kl"])
def test_four_processes_train_the_layer_of_one(four, case, reduction):
    expected = trained(layer(CASES[case]), reduction)
    for result in four.run(spread, CASES[case], reduction):
        torch.testing.assert_close(result, expected, rtol=TOLERANCE, atol=TOLERANCE)


def round_trip() -> bool:
    module = gather_units(shard_units(layer(CASES["untied"])))
    return module.shard is None and all(
        map(torch.equal, module.parameters(), layer(CASES["untied"]).parameters())
    )


def refused(name: str) -> None:
    module: Any = Autoencoder(WIDTH, 16 if name == "few" else UNITS)
    if name == "hooks":
        module.decoder.register_forward_hook(lambda *args: None)
    shard_units(shard_units(module) if name == "twice" else EncoderLayer(3, 40) if name == "bare" else module)


REFUSED = {
    "few": "code_features: expected at least 17 to split over 2 processes, got 16",
    "hooks": "module: expected layers without hooks",
    "twice": "module: expected whole layers, got one that is sharded",
    "bare": "module: expected one with an Autoencoder, got EncoderLayer",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_spread_is_refused(two, name):
    with pytest.raises(Failed, match=REFUSED[name]):
        two.run(refused, name)


def test_layers_are_made_whole_again(two):
    assert two.run(round_trip) == [True, True]
