"""The objective of every rule, by every strategy, against the dense reference under autograd."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from fastae import AuxK, Matryoshka, functional
from fastae.nn import SparseAutoencoder
from fastae.sparse import reference as R
from fastae.sparse import streamed

EXACT = {"rtol": 1e-9, "atol": 1e-9}
RULES = [
    "topk:3",
    "topk:24",
    "batch_topk:2.5",
    "relu",
    "jump_relu:0.1:0.7",
    "jump_relu:0:0.7:triangle:true",
    "gated",
]
STRATEGIES = [
    (rule, strategy)
    for rule in RULES
    for strategy in ("sparse", "dense", "streamed")
    if strategy != "streamed" or "topk" not in rule
]
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "auxk": {"auxk": AuxK(k=2)},
    "auxk, all options": {"auxk": AuxK(k=20, normalize="target", ramp=True, relu=False)},
    "auxk, not normalised": {"auxk": AuxK(normalize="none")},
    "matryoshka": {"matryoshka": Matryoshka((5, 11, 24), (1.0, 0.5, 2.0))},
    "l1": {"l1": 0.3},
    "everything": {"auxk": AuxK(k=2), "matryoshka": Matryoshka((7, 24)), "l1": 0.2},
}


def combined(loss: Any, code: Tensor) -> Tensor:
    """A function of every term and of the code."""
    terms = sum((i + 1.3) * term for i, term in enumerate(loss) if term is not None)
    # entries of the value 0 may be left out of a code, and with them the estimate of their gradient
    return terms + 0.1 * torch.where(code > 0, code, 0.0).square().sum()


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("transcoder", [False, True], ids=["autoencoder", "transcoder"])
@pytest.mark.parametrize(("rule", "chosen"), STRATEGIES, ids=[f"{r} {s}" for r, s in STRATEGIES])
def test_objective_is_the_reference(rule, chosen, transcoder, name, problem, strategy):
    p = problem(rule, transcoder)
    options = OPTIONS[name] | p.options
    if "auxk" in options:
        options["dead"] = torch.arange(p.latents) % 3 == 0
    if rule.startswith("jump"):
        options |= {"l0": 0.2} if name == "plain" else {"l0": 0.2, "l0_target": 3.0}
    strategy(chosen)
    loss, code = functional.sparse_autoencoder_loss(*p.arguments, **options)
    expected, dense = R.sparse_autoencoder_loss(*p.arguments, **options)
    for term, right in zip(loss, expected, strict=True):
        assert (term is None) == (right is None)
        if term is not None:
            torch.testing.assert_close(term, right, **EXACT)
    torch.testing.assert_close(code.to_dense(p.latents), dense, **EXACT)
    gradients = (
        torch.autograd.grad(combined(*pair), p.leaves, allow_unused=True, materialize_grads=True)
        for pair in ((loss, code.to_dense(p.latents)), (expected, dense))
    )
    for gradient, right in zip(*gradients, strict=True):
        torch.testing.assert_close(gradient, right, **EXACT)


@pytest.mark.parametrize("rule", ["topk:3", "batch_topk:2.5", "relu", "gated"])
def test_gradients_are_those_of_differences(rule, problem):
    p = problem(rule)
    options = {**p.options, "auxk": AuxK(k=3), "dead": torch.arange(p.latents) < 9}

    def total(*leaves: Tensor) -> Tensor:
        loss, _ = functional.sparse_autoencoder_loss(*p.arguments, **options)
        # the residual of auxk and the gates' decoder are held constant: no difference quotient sees that
        return loss.reconstruction

    assert torch.autograd.gradcheck(total, p.leaves, eps=1e-7, atol=1e-5, check_undefined_grad=False)


def test_auxk_reaches_the_encoder_of_dead_latents_and_no_others(problem):
    p = problem("topk:2")
    dead = torch.arange(p.latents) % 2 == 0
    loss, _ = functional.sparse_autoencoder_loss(*p.arguments, auxk=AuxK(k=4), dead=dead, **p.options)
    assert loss.auxk is not None
    _, weight, _, decoder, _ = p.arguments
    for gradient in torch.autograd.grad(loss.auxk, (weight, decoder)):
        assert gradient[dead].norm() > 0
        assert gradient[~dead].norm() == 0


@pytest.mark.parametrize("rule", ["topk:2", "relu"])
def test_auxk_is_zero_without_dead_latents_or_variance(rule, problem, strategy):
    p = problem(rule)
    strategy("streamed")
    none = torch.zeros(p.latents, dtype=torch.bool)
    cases = [(none, p.arguments[0]), (~none, p.arguments[0][:1])]  # one row has no variance
    for dead, x in cases:
        loss, _ = functional.sparse_autoencoder_loss(x, *p.arguments[1:], auxk=AuxK(), dead=dead, **p.options)
        assert loss.auxk == 0.0
        (gradient,) = torch.autograd.grad(loss.total, p.arguments[1])
        assert gradient.isfinite().all()


def test_matryoshka_is_the_sum_over_prefixes_not_their_mean(problem):
    p = problem("topk:24")
    loss, code = functional.sparse_autoencoder_loss(*p.arguments, matryoshka=Matryoshka((8, 24)), **p.options)
    x, _, _, decoder, bias = p.arguments
    h = code.to_dense(24)
    each = [(h[:, :m] @ decoder[:m] + bias - x).square().sum(1).mean() for m in (8, 24)]
    torch.testing.assert_close(loss.total, each[0] + each[1], **EXACT)
    torch.testing.assert_close(loss.reconstruction, each[1], **EXACT)


@pytest.mark.parametrize("rows", [1, 5])
def test_streamed_values_do_not_depend_on_blocks(rows, problem, strategy, monkeypatch):
    p = problem("jump_relu:0.1")
    strategy("streamed")
    values = []
    for block in (rows, 7 * rows, 24 * rows):
        monkeypatch.setattr(streamed, "_BLOCK", block)
        x = p.arguments[0][:rows]
        loss, _ = functional.sparse_autoencoder_loss(x, *p.arguments[1:], l0=1.0, **p.options)
        values.append([loss.total, *torch.autograd.grad(loss.total, p.leaves)])
    torch.testing.assert_close(values[0], values[1], **EXACT)
    torch.testing.assert_close(values[0], values[2], **EXACT)


def test_topk_compiles_to_one_graph():
    """Nothing in it depends on data."""
    torch.manual_seed(0)
    sae = SparseAutoencoder(6, 60, "topk:3", matryoshka=Matryoshka((20, 60)), l1=0.1)
    twin, x = copy.deepcopy(sae), torch.randn(9, 6)
    compiled = torch.compile(sae, fullgraph=True, backend="aot_eager")
    compiled(x).total.backward()
    twin(x).total.backward()
    torch.testing.assert_close([p.grad for p in sae.parameters()], [p.grad for p in twin.parameters()])
    assert torch.equal(sae.rows_since_fired, twin.rows_since_fired)

    def coded(x: torch.Tensor) -> torch.Tensor:
        code = functional.topk_encode(x, sae.encoder.weight, k=3)
        return functional.sparse_decode(code.values, code.indices, sae.decoder.weight)

    torch.testing.assert_close(torch.compile(coded, fullgraph=True, backend="aot_eager")(x), coded(x))
