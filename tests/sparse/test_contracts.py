"""Edge cases, precision, errors, and what the functions promise beside their values."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastae import AuxK, SparseCode, functional
from fastae.nn import SparseAutoencoder
from fastae.sparse import reference as R
from fastae.sparse import sparse_autoencoder_loss as loss_of

RULES = ["topk:3", "batch_topk:2.5", "relu", "jump_relu:0.1:0.7", "gated"]
EVERY = pytest.mark.parametrize("rule", RULES)


# --- edge cases -----------------------------------------------------------------------------------------


@EVERY
def test_no_rows(rule, problem):
    p = problem(rule)
    x = p.arguments[0].detach()[:0]
    loss, code = loss_of(x, *p.arguments[1:], **p.options)
    assert loss.total.isnan()  # as any mean over no rows
    assert code.to_dense(p.latents).shape == (0, p.latents)
    for gradient in torch.autograd.grad(loss.total, p.leaves, allow_unused=True):
        assert gradient is None or not gradient.nan_to_num().any()


@pytest.mark.parametrize("rule", ["topk:1", "batch_topk:1", "relu", "jump_relu:0.1:0.7", "gated"])
def test_one_latent_and_equal_rows(rule, problem):
    p = problem(rule)
    x = p.arguments[0].detach()[:1].expand(9, -1)
    arguments = [t if t is None or t.shape[0] != p.latents else t[:1] for t in p.arguments[1:]]
    options = dict(p.options)
    if "threshold" in options:
        options["threshold"] = options["threshold"][:1]
    if "gate" in options:
        options["gate"] = tuple(t[:1] for t in options["gate"])
    got, _ = loss_of(x, *arguments, **options)
    expected, _ = R.sparse_autoencoder_loss(x, *arguments, **options)
    for gradient, right in zip(
        *(torch.autograd.grad(v.total, p.leaves[1:], allow_unused=True) for v in (got, expected)), strict=True
    ):
        torch.testing.assert_close(gradient, right)


def _each(problem: Any, number: int | slice, value: float | Tensor) -> None:
    """Set what is added to pre-activations of some latents: their bias, or the biases of a gated code."""
    gate = problem.options.get("gate")
    for bias in (problem.arguments[2],) if gate is None else (gate[0], gate[2]):
        bias[number] = value


def _rows(problem: Any) -> None:
    problem.arguments[0][:] = problem.arguments[0][0].clone()


def _ties(problem: Any) -> None:
    _rows(problem)
    problem.arguments[1][:] = problem.arguments[1][0].clone()
    for vector in (problem.arguments[2], *problem.options.get("gate", ()), problem.options.get("threshold")):
        if vector is not None:
            vector.fill_(0.3)


EDGES: dict[str, Callable[[Any], object]] = {
    "a latent in every row": lambda p: _each(p, 17, 50.0),
    "equal rows": _rows,
    "ties everywhere": _ties,
    "nothing positive": lambda p: _each(p, slice(None), -50.0),
    "one positive": lambda p: (_each(p, slice(None), -50.0), _each(p, 5, 50.0)),
    "everything positive": lambda p: _each(p, slice(None), 50.0),
}


@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize("rule", [*RULES, "topk:24", "batch_topk:24"])  # the last with k = H
def test_edges_are_the_references(edge, rule, problem):
    p = problem(rule)
    with torch.no_grad():
        EDGES[edge](p)
    got, code = loss_of(*p.arguments, **p.options)
    expected, dense = R.sparse_autoencoder_loss(*p.arguments, **p.options)
    torch.testing.assert_close(got.total, expected.total)
    torch.testing.assert_close(code.to_dense(p.latents), dense)
    active = code.to_dense(p.latents) > 0
    if edge == "a latent in every row":
        assert active[:, 17].all()
    elif edge == "nothing positive":
        assert not active.any()
    for gradient, right in zip(
        *(
            torch.autograd.grad(v.total, p.leaves, allow_unused=True, materialize_grads=True)
            for v in (got, expected)
        ),
        strict=True,
    ):
        torch.testing.assert_close(gradient, right)


def test_one_latent_that_is_active_in_every_row():
    g = torch.Generator().manual_seed(0)
    x, weight = torch.rand(300, 4, generator=g), torch.randn(50, 4, generator=g).double()
    weight[17] = 9.0
    leaves = [weight.requires_grad_(), torch.randn(50, 4, generator=g).double().requires_grad_()]
    gradients = []
    for function in (loss_of, R.sparse_autoencoder_loss):
        rule = R.TopK(2)
        loss, code = function(x.double(), leaves[0], None, leaves[1], None, activation=rule)
        gradients.append(torch.autograd.grad(loss.total, leaves))
    dense = code if isinstance(code, Tensor) else code.to_dense(50)
    assert (dense[:, 17] > 0).all()
    torch.testing.assert_close(*gradients)


def test_entries_that_are_not_positive_have_no_value_and_no_gradient():
    weight = torch.eye(4).requires_grad_()
    x = torch.tensor([[1.0, -1.0, -2.0, -3.0]])
    code = functional.topk_encode(x, weight, k=3)
    assert code.values.tolist() == [[1.0, 0.0, 0.0]]
    (gradient,) = torch.autograd.grad(code.values.sum(), weight)
    assert gradient[1:].abs().sum() == 0.0


def test_nan_reaches_the_loss(problem):
    p = problem("topk:3")
    x = p.arguments[0].detach().clone()
    x[2, 3] = torch.nan
    loss, _ = loss_of(x, *p.arguments[1:], **p.options)
    assert loss.total.isnan()


# --- precision ------------------------------------------------------------------------------------------


@EVERY
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_lower_precision_is_close_and_sums_are_float32(rule, dtype, problem):
    p = problem(rule, dtype=dtype)
    loss, code = loss_of(*p.arguments, **p.options)
    assert all(term.dtype == torch.float32 for term in loss if term is not None)
    assert code.values.dtype == dtype
    wide = problem(rule)
    for leaf, low in zip(wide.leaves, p.leaves, strict=True):
        leaf.data.copy_(low.double())
    expected, _ = loss_of(*wide.arguments, **wide.options)
    torch.testing.assert_close(loss.total.double(), expected.total, rtol=0.03, atol=0.0)
    loss.total.backward()
    for leaf in p.leaves:
        assert leaf.grad is None or (leaf.grad.dtype == leaf.dtype and leaf.grad.isfinite().all())


@EVERY
def test_autocast_is_that_of_linear(rule, problem):
    p = problem(rule, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        loss, code = loss_of(*p.arguments, **p.options)
        linear = F.linear(p.arguments[0], p.arguments[1])
    assert code.values.dtype == linear.dtype == torch.bfloat16
    assert loss.total.dtype == torch.float32
    loss.total.backward()
    expected, _ = loss_of(*p.arguments, **p.options)
    torch.testing.assert_close(loss.total, expected.total, rtol=0.05, atol=0.0)
    assert all(leaf.grad is None or leaf.grad.dtype == torch.float32 for leaf in p.leaves)


# --- gradients ------------------------------------------------------------------------------------------


@EVERY
def test_transforms_of_torch_func_raise(rule, problem):
    p = problem(rule)
    x, *parameters = (t if t is None else t.detach() for t in p.arguments)

    def total(x: Tensor) -> Tensor:
        return loss_of(x, *parameters, **p.options)[0].total

    for transformed in (
        lambda: torch.func.grad(total)(x),
        lambda: torch.func.vmap(lambda row: total(row[None]))(x),
        lambda: torch.func.jvp(total, (x,), (x,)),
    ):
        with pytest.raises(RuntimeError, match=r"^losses of sparse codes: run under no transform"):
            transformed()
    with pytest.raises(RuntimeError, match=r"^sparse codes: run"):
        torch.func.vmap(SparseAutoencoder(6, 20, rule).reconstruct)(torch.rand(3, 2, 6))


@EVERY
def test_second_derivatives_raise(rule, problem):
    p = problem(rule)
    loss, _ = loss_of(*p.arguments, **p.options)
    (gradient,) = torch.autograd.grad(loss.total, p.arguments[1], create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        gradient.square().sum().backward()


@EVERY
@pytest.mark.parametrize("chosen", ["sparse", "dense", "streamed"])
def test_steps_repeat_bit_for_bit(rule, chosen, problem, strategy):
    strategy(chosen)
    steps = []
    for _ in range(2):
        p = problem(rule, dtype=torch.float32)
        loss, _ = loss_of(*p.arguments, auxk=AuxK(k=3), dead=torch.arange(24) < 7, l1=0.1, **p.options)
        steps.append([loss.total, *torch.autograd.grad(loss.total, p.leaves, allow_unused=True)])
    for one, two in zip(*steps, strict=True):
        assert (one is None and two is None) or torch.equal(one, two)


@EVERY
def test_inputs_stay_and_frozen_parameters_get_no_gradient(rule, problem):
    p = problem(rule)
    before = [leaf.detach().clone() for leaf in p.leaves]
    for leaf in p.leaves:
        leaf.requires_grad_(False)
    p.arguments[3].requires_grad_()
    loss, _ = loss_of(*p.arguments, **p.options)
    loss.total.backward()
    assert p.arguments[3].grad is not None
    assert all(leaf.grad is None for leaf in p.leaves if leaf is not p.arguments[3])
    assert all(torch.equal(leaf, copy) for leaf, copy in zip(p.leaves, before, strict=True))


def test_decode_is_the_dense_product(problem):
    g = torch.Generator().manual_seed(0)
    weight = torch.randn(11, 5, generator=g, dtype=torch.float64).requires_grad_()
    bias = torch.randn(5, generator=g, dtype=torch.float64).requires_grad_()
    dense = torch.randn(2, 3, 11, generator=g, dtype=torch.float64)
    values, indices = dense.topk(4)
    values.requires_grad_()
    got = functional.sparse_decode(values, indices, weight, bias)
    expected = SparseCode(values, indices).to_dense(11) @ weight + bias
    for pair in (
        (got, expected),
        [torch.autograd.grad(v.sin().sum(), (values, weight, bias)) for v in (got, expected)],
    ):
        torch.testing.assert_close(*pair)
    offsets = torch.tensor([0, 3, 3, 8])
    ragged = SparseCode(values.flatten()[:8], indices.flatten()[:8], offsets)
    got = functional.sparse_decode(*ragged[:2], weight, offsets=offsets)
    torch.testing.assert_close(got, ragged.to_dense(11) @ weight)


def test_any_strides(problem):
    p = problem("topk:3")
    x, weight, bias, decoder, decoder_bias = (t.detach() for t in p.arguments)
    strided = [x.t().contiguous().t(), weight.t().contiguous().t(), bias, decoder.t().contiguous().t()]
    leaves = [t.requires_grad_() for t in strided]
    loss, _ = loss_of(*leaves, decoder_bias, activation="topk:3")
    expected, _ = loss_of(*p.arguments, **p.options)
    got = torch.autograd.grad(loss.total, leaves)
    torch.testing.assert_close(list(got), list(torch.autograd.grad(expected.total, p.arguments[:4])))


# --- memory ---------------------------------------------------------------------------------------------

_STEP = """
import resource, sys, torch
from fastae.nn import SparseAutoencoder
torch.set_num_threads(1)
rows, features, latents = 512, 16, 1 << 17  # an [N, H] matrix is 256 MiB
x = torch.randn(rows, features)
SparseAutoencoder(features, 1 << 13, sys.argv[1])(x).total.backward()  # loads what torch loads late
sae = SparseAutoencoder(features, latents, sys.argv[1])
base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
sae(x).total.backward()
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base) // 1024)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs the resource module")
@pytest.mark.parametrize("rule", ["topk:16", "batch_topk:16", "jump_relu:0.1", "jump_relu:3"])
def test_memory_is_that_of_gradients(rule):
    peak = subprocess.run([sys.executable, "-c", _STEP, rule], capture_output=True, text=True, check=True)
    gradients = 2 * 8
    assert int(peak.stdout) < gradients + 96, "an [N, H] matrix has 256 MiB"


# --- errors ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"activation": "topk:25"}, "activation: expected k of at most 24 latents, got topk:25"),
        ({"activation": "jump_relu"}, r"threshold: expected shape \[24\] for jump_relu, got None"),
        ({"activation": "gated"}, "gate: expected .* for gated, got None"),
        ({"threshold": torch.zeros(24)}, "threshold: expected one per latent for jump_relu"),
        ({"gate": (torch.zeros(24),) * 3}, "gate: expected None for topk:3"),
        ({"auxk": AuxK()}, "dead: expected the dead latents"),
        ({"auxk": AuxK(), "dead": torch.zeros(24)}, r"dead: expected bool \[24\], got torch.float32"),
        ({"target": torch.zeros(13, 5)}, r"target: expected shape \[13, 6\]"),
        ({"skip": torch.zeros(6, 5)}, r"skip: expected shape \[6, 6\]"),
        ({"l1": -1.0}, "l1: must be"),
        ({"l0": 1.0}, "l0: needs a jump_relu"),
    ],
)
def test_errors_name_the_argument(change, message, problem):
    p = problem("topk:3")
    with pytest.raises(ValueError, match=message):
        loss_of(*p.arguments, **(p.options | change))


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (0, torch.zeros(13, 5), r"x: expected shape \[\*, 6\]"),
        (1, torch.zeros(24), "weight: expected two dimensions"),
        (3, torch.zeros(6, 24), r"decoder_weight: expected shape \[24, Do\]"),
        (3, torch.zeros(24, 5), "decoder_bias: expected shape"),
        (4, torch.zeros(5), r"decoder_bias: expected shape \[6\]"),
    ],
)
def test_errors_name_the_tensor(place, value, message, problem):
    p = problem("topk:3")
    arguments = list(p.arguments)
    arguments[place] = value.double()
    with pytest.raises(ValueError, match=message):
        loss_of(*arguments, **p.options)


@pytest.mark.parametrize(
    ("values", "indices", "offsets", "message"),
    [
        ([[0.0, 0.0]], [[0, 1, 2]], None, "indices: expected the shape of values"),
        ([0.0], [0.5], None, "indices: expected int64, got torch.float32"),
        ([0.0, 0.0], [0, 5], None, "indices: expected 0 to 4, got 0 to 5"),
        ([0.0, 0.0], [0, -1], None, "indices: expected 0 to 4, got -1 to 0"),
        ([0.0, 0.0], [0, 1], [0.0, 2.0], "offsets: expected int64"),
    ],
)
def test_errors_of_codes(values, indices, offsets, message):
    offsets = None if offsets is None else torch.tensor(offsets)
    with pytest.raises(ValueError, match=message):
        functional.sparse_decode(
            torch.tensor(values), torch.tensor(indices), torch.zeros(5, 3), None, offsets
        )


def test_errors_of_widths():
    weight, x = torch.zeros(5, 3), torch.zeros(2, 3)
    with pytest.raises(ValueError, match="k: expected at most the 5 rows"):
        functional.topk_encode(x, weight, k=6)
    with pytest.raises(ValueError, match="k must be a whole number"):
        functional.topk_encode(x, weight, k=0)
    with pytest.raises(ValueError, match="width: expected more than the largest index 7, got 7"):
        SparseCode(torch.ones(2), torch.tensor([1, 7])).to_dense(7)
