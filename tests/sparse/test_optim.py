"""DictionaryAdam beside torch's Adam with projected gradients and rows of norm 1."""

from __future__ import annotations

import copy

import pytest
import torch

from fastae import AuxK, Matryoshka
from fastae.nn import SparseAutoencoder
from fastae.ops import updates
from fastae.optim import DictionaryAdam, constrain
from fastae.train import TrainingStep

CASES = {
    "topk:3": {"auxk": AuxK(k=2, dead_after=20)},
    "batch_topk:2": {"matryoshka": Matryoshka((8, 40))},
    "topk:2": {"skip": True, "normalization": "norm"},
    "jump_relu:0.1:0.7": {"l0": 0.01},
    "gated": {"l1": 0.1},
}


def rows(number: int) -> torch.Tensor:
    return torch.randn(number, 6, generator=torch.Generator().manual_seed(1))


def pair(rule: str, **options) -> tuple[SparseAutoencoder, SparseAutoencoder]:
    torch.manual_seed(0)
    sae = SparseAutoencoder(6, 40, rule, **options).initialize_(rows(50))
    return sae, copy.deepcopy(sae)


@pytest.mark.parametrize("rule", CASES)
def test_a_hundred_steps_are_those_of_adam(rule: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(updates, "_BLOCK", 6 * 7)  # several blocks, the last of them shorter
    ours, theirs = pair(rule, **CASES[rule])
    steps = [
        TrainingStep(ours, DictionaryAdam(ours, 1e-3, (0.9, 0.99))),
        TrainingStep(theirs, constrain(torch.optim.Adam(theirs.parameters(), 1e-3, (0.9, 0.99)), theirs)),
    ]
    for x in rows(10 * 17).split(17) * 10:
        for step in steps:
            step(x)
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value, rtol=1e-6, atol=1e-6, msg=name)
    torch.testing.assert_close(ours.decoder.weight.norm(dim=1), torch.ones(40))


def test_weights_have_no_gradients_and_backward_passes_add_up():
    ours, theirs = pair("topk:3")
    optimizer, adam = DictionaryAdam(ours), constrain(torch.optim.Adam(theirs.parameters(), 1e-3), theirs)
    for x in rows(30).split(10):
        ours(x).total.backward()
        theirs(x).total.backward()
    assert ours.encoder.weight.grad is None and ours.decoder.weight.grad is None
    assert ours.encoder.bias.grad is not None
    optimizer.step()
    adam.step()
    torch.testing.assert_close(ours.encoder.weight, theirs.encoder.weight, rtol=1e-6, atol=1e-6)
    optimizer.zero_grad()
    before = copy.deepcopy(ours.state_dict())
    optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in ours.state_dict().items())


def test_gradients_of_lower_precision_are_widened():
    ours, theirs = pair("topk:3")
    optimizers = DictionaryAdam(ours), constrain(torch.optim.Adam(theirs.parameters(), 1e-3), theirs)
    for sae, optimizer in zip((ours, theirs), optimizers, strict=True):
        step = TrainingStep(sae, optimizer, autocast=torch.bfloat16)
        for x in rows(40).split(20):
            step(x)
    torch.testing.assert_close(ours.encoder.weight, theirs.encoder.weight, rtol=1e-5, atol=1e-5)


def test_the_state_is_adams():
    ours, theirs = pair("topk:3")
    optimizer, adam = DictionaryAdam(ours), constrain(torch.optim.Adam(theirs.parameters(), 1e-3), theirs)
    for one, other in ((ours, optimizer), (theirs, adam)):
        one(rows(10)).total.backward()
        other.step()
    twin = copy.deepcopy(theirs)
    assert twin.deferred_gradients is None and copy.deepcopy(ours).deferred_gradients is None
    resumed = DictionaryAdam(twin)
    resumed.load_state_dict(copy.deepcopy(adam.state_dict()))
    for one, other in ((twin, resumed), (theirs, adam)):
        other.zero_grad()
        one(rows(12)).total.backward()
        other.step()
    torch.testing.assert_close(twin.decoder.weight, theirs.decoder.weight, rtol=1e-6, atol=1e-6)


def test_refusals():
    sae, _ = pair("topk:3")
    with pytest.raises(ValueError, match="betas: expected two numbers from 0 to below 1"):
        DictionaryAdam(sae, betas=(0.9, 1.0))
    with pytest.raises(ValueError, match="lr: must be"):
        DictionaryAdam(sae, -1.0)
    with pytest.raises(ValueError, match="clip_norm: expected 0 with DictionaryAdam"):
        TrainingStep(sae, DictionaryAdam(sae), clip_norm=1.0)
