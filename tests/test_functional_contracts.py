"""Contracts of the functions besides values: shapes, strides, and inputs left alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from fastae import Masking, functional

CLOSE = {"rtol": 1e-12, "atol": 1e-12}
REDUCTIONS = pytest.mark.parametrize("reduction", ["mean", "sum", "none"])


def run(call: Callable[..., tuple[Tensor, ...]], leaves: Sequence[Tensor], reduction: str = "mean"):
    """Outputs, and gradients to every tensor of the outputs' weighted sum."""
    torch.manual_seed(0)
    outputs = call(*leaves, reduction)
    combined = sum((k + 1.0) * (out * (out.detach() + 1.0)).sum() for k, out in enumerate(outputs))
    return outputs, torch.autograd.grad(combined, leaves, allow_unused=True, materialize_grads=True)


def assert_close(one: Sequence[Tensor], two: Sequence[Tensor], **tolerance: float) -> None:
    for a, b in zip(one, two, strict=True):
        torch.testing.assert_close(a, b, **(tolerance or CLOSE))


# --- shapes ---------------------------------------------------------------------------------------------


@REDUCTIONS
@pytest.mark.parametrize("leading", [(2, 3), (1, 1, 4), (), (0, 3), (2, 0)], ids=str)
def test_all_leading_dimensions_are_rows(call, reduction: str, leading: tuple[int, ...], parameters):
    rows = math.prod(leading)
    x, *weights, target = parameters(rows, 6, 6).leaves()
    flat, flat_gradients = run(call, (x, *weights, target), reduction)
    shaped, gradients = run(call, (x.view(*leading, 6), *weights, target.view(*leading, 6)), reduction)
    for out, expected in zip(shaped, flat, strict=True):
        assert out.shape == (leading + expected.shape[1:] if expected.dim() else ())
        torch.testing.assert_close(out.reshape(expected.shape), expected, equal_nan=True, **CLOSE)
    assert gradients[0].shape == gradients[-1].shape == (*leading, 6)
    for gradient, expected in zip(gradients, flat_gradients, strict=True):
        torch.testing.assert_close(gradient.reshape(expected.shape), expected, equal_nan=True, **CLOSE)


@REDUCTIONS
def test_no_rows_give_nan_or_zero_and_no_gradient(call, reduction: str, parameters):
    leaves = parameters(0, 6, 6).leaves()
    outputs = call(*leaves, reduction)
    gradients = torch.autograd.grad([out.sum() for out in outputs], leaves, materialize_grads=True)
    scalars = [out for out in outputs if out.dim() == 0]
    if len(outputs) > 2:
        assert scalars.pop().isnan()  # the divergence of a mean over no rows
    assert all(out.isnan() if reduction == "mean" else out == 0.0 for out in scalars)
    for gradient in gradients:
        assert torch.equal(gradient, torch.zeros_like(gradient))


# --- strides --------------------------------------------------------------------------------------------

VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "strided rows": lambda t: t.repeat_interleave(2, 0)[::2],
    "strided columns": lambda t: t.repeat_interleave(2, 1)[:, ::2],
    "transposed": lambda t: t.t().contiguous().t(),
    "part of a wider one": lambda t: torch.cat((t, t), 1)[:, : t.shape[1]],
}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
@pytest.mark.parametrize("place", ["x", "weight", "decoder_weight", "target"])
def test_any_strides_are_taken(call, view, place: str, parameters):
    leaves = parameters(5, 6, 6).leaves()
    strided = view(getattr(leaves, place).detach()).requires_grad_()
    assert not strided.is_contiguous()
    outputs, gradients = run(call, leaves)
    strided_outputs, strided_gradients = run(call, leaves._replace(**{place: strided}))
    assert_close(outputs, strided_outputs)
    assert_close(gradients, strided_gradients)


def test_rows_may_be_one_row_expanded(call, parameters):
    leaves = parameters(1, 6, 6).leaves()
    x, target = (t.detach().expand(5, 6) for t in (leaves.x, leaves.target))
    assert x.stride() == (0, 1)
    expanded, _ = run(call, leaves._replace(x=x.requires_grad_(), target=target.requires_grad_()))
    copied, _ = run(call, leaves._replace(x=x.clone(), target=target.clone()))
    assert_close(expanded, copied)


UPSTREAM: dict[str, Callable[..., Tensor]] = {
    "stride 0": lambda shape: torch.ones((), dtype=torch.float64).expand(shape),
    "transposed": lambda shape: torch.linspace(-1, 1, math.prod(shape)).double().view(shape[::-1]).t(),
    "strided": lambda shape: torch.linspace(-1, 1, 2 * math.prod(shape)).double().view(*shape, 2)[..., 0],
}


@pytest.mark.parametrize("kind", UPSTREAM)
def test_upstream_gradient_may_have_any_strides(call, kind: str, parameters):
    leaves = parameters(5, 6, 6).leaves()
    gradients = []
    for prepare in (lambda g: g, lambda g: g.contiguous()):
        torch.manual_seed(0)
        outputs = [out for out in call(*leaves, "none") if out.dim()]
        upstream = [prepare(UPSTREAM[kind](out.shape)) for out in outputs]
        gradients.append(torch.autograd.grad(outputs, leaves, upstream, materialize_grads=True))
    assert_close(*gradients)


# --- purity ---------------------------------------------------------------------------------------------


@REDUCTIONS
def test_nothing_is_written_to_an_input_or_an_upstream_gradient(call, reduction: str, parameters):
    leaves = parameters(5, 6, 6).leaves()
    before = [t.detach().clone() for t in leaves]
    outputs = call(*leaves, reduction)
    upstream = [torch.full_like(out, 0.5) for out in outputs]
    torch.autograd.grad(outputs, leaves, upstream, materialize_grads=True)
    assert all(torch.equal(t, copy) and t._version == 0 for t, copy in zip(leaves, before, strict=True))
    assert all(torch.equal(g, torch.full_like(g, 0.5)) and g._version == 0 for g in upstream)


def test_two_runs_and_two_backward_passes_agree_bit_for_bit(call, parameters):
    leaves = parameters(300, 6, 6).leaves(dtype=torch.float32)
    assert_close(*(sum(run(call, leaves), ()) for _ in range(2)), rtol=0, atol=0)
    torch.manual_seed(0)
    outputs = [out.sum() for out in call(*leaves, "mean")]
    twice = [
        torch.autograd.grad(outputs, leaves, retain_graph=True, materialize_grads=True) for _ in range(2)
    ]
    assert_close(*twice, rtol=0, atol=0)


def test_noise_follows_the_generator_and_leaves_the_default_one_alone(parameters, everything):
    p = parameters()
    state = torch.get_rng_state()
    one, again, other = (
        functional.autoencoder_loss(*p[:5], **everything, generator=torch.Generator().manual_seed(n)).total
        for n in (5, 5, 6)
    )
    assert torch.equal(one, again) and not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), state)


def test_without_noise_no_random_number_is_drawn(parameters):
    state = torch.get_rng_state()
    functional.autoencoder_loss(*parameters()[:5], contractive=0.1, l1=0.1, kl=0.1)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    "options",
    [{"corruption": Masking(0.5)}, {"dropout": 0.5}, {"code_noise": "gaussian"}, {"higher_order": 1.0}],
    ids=lambda options: next(iter(options)),
)
def test_every_step_draws_new_noise(options, parameters):
    p = parameters()
    one, two = (functional.autoencoder_loss(*p[:5], **options).total for _ in range(2))
    assert one != two
