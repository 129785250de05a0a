"""The gate: what is right gets through on every group, what is wrong anywhere does not."""

import math

import pytest
import torch

from fastae.bench.gate import TOLERANCES, error_of
from fastae.bench.groups import ENCODE, GROUPS, SPARSE, STEP
from fastae.bench.peers import PEERS, Peer
from fastae.bench.problems import MASKING, Problem, Shape
from fastae.bench.providers import Provider, make_provider, names_of

SHAPE = Shape(67, 31, 23)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("name", ["fastae", "eager", "jacobian"])
@pytest.mark.parametrize("group", GROUPS.values(), ids=GROUPS)
def test_right_providers_pass(group, name, dtype):
    if name == "jacobian" and group.jacobian is None:
        with pytest.raises(ValueError, match="providers"):
            make_provider(name, group, Problem.make(SHAPE))
        return
    problem = Problem.make(SHAPE, getattr(torch, dtype))
    assert error_of(make_provider(name, group, problem), group, problem) <= TOLERANCES[dtype]


@pytest.mark.parametrize("scale", [1.0, 1.001])
def test_peers_run_on_the_same_tensors_where_they_are_installed(scale, monkeypatch):
    def make(features, k):
        def reconstruct(x, weight, bias, decoder, center):
            z = (x - center) @ weight.t() + bias
            return torch.where(z > 0, z, 0.0) @ decoder * scale + center  # k is no less than the latents

        return reconstruct

    monkeypatch.setitem(PEERS, "sparsify", Peer("torch", make))
    monkeypatch.setitem(PEERS, "saelens", Peer("not_installed", make))
    names, problem = names_of(SPARSE, torch.device("cpu")), Problem.make(SHAPE)
    assert "sparsify" in names and "saelens" not in names
    error = error_of(make_provider("sparsify", SPARSE, problem), SPARSE, problem)
    assert (error <= TOLERANCES["float32"]) == (scale == 1.0)


def test_exact_is_the_same_over_many_blocks(monkeypatch):
    problem = Problem.make(SHAPE)
    errors = []
    for rows in (1000, 10):
        monkeypatch.setattr("fastae.bench.gate._ROWS", rows)
        errors.append(error_of(make_provider("eager", ENCODE, problem), ENCODE, problem))
    assert errors[0] == pytest.approx(errors[1], rel=0.1)


def wrong_penalty(x, weight, bias):
    code, penalty = ENCODE.eager(x, weight, bias)
    return code, penalty * 1.001


def detached_weight(x, weight, bias):
    code = torch.sigmoid(x @ weight.t() + bias)
    slope = code * (1.0 - code)
    return code, (slope.square() @ weight.detach().square().sum(1)).mean()


def not_finite(x, weight, bias):
    code, penalty = ENCODE.eager(x, weight, bias)
    return code * torch.where(torch.arange(len(code)) == 3, math.nan, 1.0)[:, None], penalty


@pytest.mark.parametrize("function", [wrong_penalty, detached_weight, not_finite])
def test_wrong_outputs_or_gradients_do_not_pass(function):
    problem = Problem.make(SHAPE)
    error = error_of(Provider(function, ENCODE, problem), ENCODE, problem)
    assert not error <= TOLERANCES["float32"]


@pytest.mark.parametrize(
    "mask",
    [
        lambda x: x * (torch.rand_like(x) >= 0.5),  # another share
        lambda x: x * (torch.rand_like(x) >= MASKING.p) / (1.0 - MASKING.p),  # dropout's scaling
        lambda x: x,
    ],
    ids=["share", "scaled", "none"],
)
def test_wrong_noise_does_not_pass(mask):
    def step(x, weight, bias, decoder_bias):
        noisy = mask(x)
        code, penalty = ENCODE.eager(noisy, weight, bias)
        logits = code @ weight + decoder_bias
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, x, reduction="none")
        return loss.sum(1).mean() + 0.1 * penalty, noisy

    problem = Problem.make(SHAPE)
    assert error_of(Provider(step, STEP, problem), STEP, problem) == math.inf


def test_problems_are_random_and_repeatable():
    one, two = Problem.make(SHAPE), Problem.make(SHAPE)
    for a, b in zip(vars(one).values(), vars(two).values(), strict=True):
        assert torch.equal(a, b) and a.std() > 0.0 and (a != 0).double().mean() > 0.99
    assert one.shape == SHAPE and one.head(5).shape == Shape(5, 31, 23)
