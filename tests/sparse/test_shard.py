"""Dictionaries whose latents are spread over two and four processes, beside one process."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from fastae import AuxK, Matryoshka
from fastae.distributed import full_state_dict, shard_latents
from fastae.nn import SparseAutoencoder
from fastae.optim import DictionaryAdam, constrain

AUXK = AuxK(weight=0.5, k=5, dead_after=20)
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "topk": ("topk:5", {}),
    "topk auxk": ("topk:3", {"auxk": AUXK}),
    "batch_topk": ("batch_topk:2.5:0.9", {"auxk": AUXK}),
    "matryoshka": ("topk:4", {"matryoshka": Matryoshka((3, 10, 16)), "auxk": AUXK}),
    "batch matryoshka": ("batch_topk:3", {"matryoshka": Matryoshka((10, 16)), "skip": True}),
    "jump_relu": ("jump_relu:0.1:0.7", {"l0": 0.1, "l0_target": 3.0, "auxk": AUXK}),
    "gated": ("gated", {"l1": 0.1, "auxk": AUXK}),
}


def make(name: str) -> SparseAutoencoder:
    torch.manual_seed(0)
    rule, options = CASES[name]
    sae = SparseAutoencoder(6, 16, rule, dtype=torch.float64, **options)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
        sae.encoder.weight[9] = sae.encoder.weight[2]  # ties over processes
        sae.rows_since_fired[::3] = 100
    return sae


def rows() -> torch.Tensor:
    return torch.randn(4, 11, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def trained(sae: SparseAutoencoder, optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """The losses of a few steps."""
    losses = []
    for x in rows():
        optimizer.zero_grad()
        loss = sae(x)
        loss.total.backward()
        optimizer.step()
        losses += [term.detach() for term in loss if term is not None]
    return losses


def work() -> dict[str, tuple[list[torch.Tensor], dict[str, torch.Tensor]]]:
    """One process: the losses and the whole state of every case."""
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    results = {}
    for name in CASES:
        sae = shard_latents(make(name))
        assert sae.encoder.weight.shape == (16 // world, 6) and sae.code_features == 16
        losses = trained(sae, constrain(torch.optim.SGD(sae.parameters(), 0.1), sae))
        results[name] = losses, full_state_dict(sae)
    sae = shard_latents(make("topk auxk"))
    results["DictionaryAdam"] = trained(sae, DictionaryAdam(sae, 0.01)), full_state_dict(sae)
    with pytest.raises(ValueError, match="expected a whole dictionary"):
        sae.encode(rows()[0])
    with pytest.raises(ValueError, match="code_features: expected a multiple"):
        shard_latents(SparseAutoencoder(6, 4 * world + 1, "topk:2"))
    if world == 4:  # two groups of two, in which the same latents see other rows
        pairs = [torch.distributed.new_group([0, 1]), torch.distributed.new_group([2, 3])]
        sae = shard_latents(make("topk"), pairs[rank // 2])
        before = sae.rows_since_fired.clone()
        sae(rows()[rank // 2])
        sae(rows()[2 + rank // 2])
        assert ((sae.rows_since_fired == before + 44) | (sae.rows_since_fired <= 22)).all()
        results["counts"] = [], full_state_dict(sae)
    return results


@pytest.mark.parametrize("world", ["two", "four"])
def test_processes_train_as_one(request: pytest.FixtureRequest, world: str):
    results = request.getfixturevalue(world).run(work)
    for name in [*CASES, "DictionaryAdam"]:
        whole = make("topk auxk" if name == "DictionaryAdam" else name)
        twin = copy.deepcopy(whole)
        optimizer = constrain(torch.optim.SGD(whole.parameters(), 0.1), whole)
        if name == "DictionaryAdam":
            optimizer = DictionaryAdam(whole, 0.01)
        losses = trained(whole, optimizer)
        assert not torch.equal(whole.encoder.weight, twin.encoder.weight)
        for found, state in (result[name] for result in results):
            torch.testing.assert_close(found, losses, rtol=1e-8, atol=1e-8, msg=name)
            for key, value in whole.state_dict().items():
                torch.testing.assert_close(state[key], value, rtol=1e-8, atol=1e-8, msg=f"{name}: {key}")
    if world == "four":
        one = make("topk")
        for first in (0, 2):
            one(rows()[first : first + 2].flatten(0, 1))
        for result in results:
            assert torch.equal(result["counts"][1]["rows_since_fired"], one.rows_since_fired)
