"""Codes that are not sparse yet: dense products over blocks of latents, recomputed by the backward pass.

An encoder of ReLU, JumpReLU or gated units starts with half of its latents active. Blocks of [N, H_c] keep
memory independent of H: six matrix products per step rather than five, and five where one block holds all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import Function

from ..gradients.once import first_order
from ..tensors import outside_autocast, sum_dtype
from .gradients import Jump
from .specs import Gated, JumpReLU, Sparsity

_BLOCK = 1 << 20  # entries: a block and its few temporaries stay in a core's cache

Context = Any


class Vectors(NamedTuple):
    """Parameters per latent, [H] each, of the rules that have some."""

    threshold: Tensor | None = None
    gate_bias: Tensor | None = None
    magnitude: Tensor | None = None
    magnitude_bias: Tensor | None = None


class Activated(NamedTuple):
    """Results of an activation, in the shape of its pre-activations."""

    code: Tensor
    gate: Tensor | None = None  # what a gated code is penalised by, in place of the code
    active: Tensor | None = None  # 1 or 0, with an estimated gradient (JumpReLU)


def activate(rule: Sparsity, u: Tensor, vectors: Vectors, at: Callable[[Tensor], Tensor]) -> Activated:
    """The activation of pre-activations u, of dense blocks or of entries.

    ``at`` takes a vector [H] to u's latents: a slice of it, or its value at each entry.
    """
    if isinstance(rule, JumpReLU):
        assert vectors.threshold is not None
        code, active = Jump.apply(u, at(vectors.threshold).to(u.dtype), rule)
        return Activated(code, active=active)
    if isinstance(rule, Gated):
        gate_bias, magnitude, magnitude_bias = (at(v).to(u.dtype) for v in vectors[1:] if v is not None)
        gate = u + gate_bias
        return Activated((gate > 0) * (magnitude.exp() * u + magnitude_bias).relu(), gate=gate.relu())
    return Activated(u.relu())


class Plan(NamedTuple):
    """Results of a streamed pass."""

    rule: Sparsity
    ends: tuple[int, ...]  # of the prefixes, the last one H
    l1: bool
    l0: bool

    def blocks(self, rows: int) -> Iterator[tuple[int, slice]]:
        """The prefix's number and the latents of each block."""
        width = max(1, _BLOCK // max(rows, 1))
        start = 0
        for number, end in enumerate(self.ends):
            while start < end:
                part = slice(start, min(start + width, end))
                yield number, part
                start = part.stop


class Streamed(Function):
    """Per prefix its latents' part of the reconstruction [G, N, Do], and what the penalties need.

    Returns (parts, reconstruction by the gates [N, Do], sum of activations times norms [N], number of active
    latents [N], whether each latent is active anywhere [H]); ``None`` for what the plan does not ask for.
    """

    @staticmethod
    def forward(
        ctx: Context,
        x: Tensor,
        center: Tensor | None,
        centred: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        decoder: Tensor,
        norms: Tensor | None,
        plan: Plan,
        *vectors: Tensor | None,
    ) -> tuple[Tensor | None, ...]:
        results, kept = _streamed_values(centred, weight, bias, decoder, norms, Vectors(*vectors), plan)
        ctx.plan = plan
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, center, centred, weight, bias, decoder, norms, kept, *vectors)
        ctx.mark_non_differentiable(results[-1])
        return results

    @staticmethod
    @first_order
    def backward(ctx: Context, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        x, center, centred, weight, bias, decoder, norms, kept, *vectors = ctx.saved_tensors
        need = ctx.needs_input_grad
        d_centred, d_weight, d_bias, d_decoder, d_norms, d_vectors = _streamed_grad(
            centred, weight, bias, decoder, norms, kept, Vectors(*vectors), ctx.plan, grads, need[0]
        )
        d_x = None if d_centred is None else d_centred.to(x.dtype)
        d_center = None
        if need[1]:
            total = d_bias.to(weight.dtype) @ weight if d_x is None else d_x.sum(0)
            d_center = -total.to(center.dtype)
        return (
            d_x,
            d_center,
            None,
            d_weight,
            None if bias is None else d_bias.to(bias.dtype),
            d_decoder,
            d_norms,
            None,
            *d_vectors,
        )


@outside_autocast
def _streamed_values(
    centred: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    decoder: Tensor,
    norms: Tensor | None,
    vectors: Vectors,
    plan: Plan,
) -> tuple[tuple[Tensor | None, ...], Tensor | None]:
    rows, wide = len(centred), sum_dtype(weight.dtype)
    zeros = lambda *shape: centred.new_zeros(shape, dtype=wide)  # noqa: E731
    parts = zeros(len(plan.ends), rows, decoder.shape[1])
    gates = zeros(rows, decoder.shape[1]) if isinstance(plan.rule, Gated) else None
    l1 = zeros(rows) if plan.l1 else None
    l0 = zeros(rows) if plan.l0 else None
    fired = torch.zeros(len(weight), dtype=torch.bool, device=weight.device)
    kept = None
    for number, part in plan.blocks(rows):
        u = _linear(centred, weight[part], bias, part)
        kept = u if part.stop - part.start == len(weight) else None
        h = activate(plan.rule, u, vectors, lambda v, part=part: v[part])
        _add_product(parts[number], h.code.to(decoder.dtype), decoder[part])
        if gates is not None and h.gate is not None:
            _add_product(gates, h.gate.to(decoder.dtype), decoder[part])
        if l1 is not None and norms is not None:
            l1 += (h.code if h.gate is None else h.gate) @ norms[part].to(wide)
        if l0 is not None and h.active is not None:
            l0 += h.active.sum(1)
        fired[part] = (h.code > 0).any(0)
    return (parts, gates, l1, l0, fired), kept


@outside_autocast
def _streamed_grad(
    centred: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    decoder: Tensor,
    norms: Tensor | None,
    kept: Tensor | None,
    vectors: Vectors,
    plan: Plan,
    grads: tuple[Tensor | None, ...],
    need_x: bool,
) -> tuple[Any, ...]:
    g_parts, g_gates, g_l1, g_l0, _ = grads
    wide = sum_dtype(weight.dtype)
    low = lambda g: None if g is None else g.to(decoder.dtype)  # noqa: E731
    g_parts, g_gates = low(g_parts), low(g_gates)
    d_weight, d_decoder = torch.empty_like(weight), torch.empty_like(decoder)
    d_bias = torch.empty(len(weight), dtype=wide, device=weight.device)
    d_centred = torch.zeros_like(centred, dtype=wide) if need_x else None
    d_norms = None if norms is None else torch.zeros_like(norms)
    d_vectors = [None if v is None else torch.empty_like(v) for v in vectors]
    for number, part in plan.blocks(len(centred)):
        u = _linear(centred, weight[part], bias, part) if kept is None else kept
        w, v = weight[part], decoder[part]
        with torch.enable_grad():
            u = u.detach().requires_grad_()
            own = Vectors(*(None if t is None else t[part].detach().requires_grad_() for t in vectors))
            h = activate(plan.rule, u, own, lambda t: t)
        d_code = torch.zeros_like(u) if g_parts is None else (g_parts[number] @ v.t()).to(wide)
        d_gate = None if h.gate is None else torch.zeros_like(u)
        if g_gates is not None and d_gate is not None:
            d_gate += g_gates @ v.t()
        if g_l1 is not None and norms is not None and d_norms is not None:
            (d_code if d_gate is None else d_gate).addcmul_(g_l1[:, None], norms[part].to(wide))
            d_norms[part] = g_l1 @ (h.code if h.gate is None else h.gate).detach()
        pairs = [(h.code, d_code), (h.gate, d_gate)]
        if h.active is not None and g_l0 is not None:
            pairs.append((h.active, g_l0[:, None].expand_as(u)))
        used = [(value, grad) for value, grad in pairs if value is not None]
        leaves = [u, *(t for t in own if t is not None)]
        du, *rest = torch.autograd.grad(
            [value for value, _ in used],
            leaves,
            [grad for _, grad in used],
            allow_unused=True,
            materialize_grads=True,
        )
        for total in d_vectors:
            if total is not None:
                total[part] = rest.pop(0)
        d_bias[part] = du.sum(0)
        du = du.to(weight.dtype)
        torch.mm(du.t(), centred, out=d_weight[part])
        if g_parts is None:
            d_decoder[part] = 0.0
        else:
            torch.mm(h.code.detach().to(decoder.dtype).t(), g_parts[number], out=d_decoder[part])
        if d_centred is not None:
            _add_product(d_centred, du, w)
    return d_centred, d_weight, d_bias, d_decoder, d_norms, d_vectors


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None, part: slice) -> Tensor:
    z = x @ weight.t() if bias is None else torch.addmm(bias[part], x, weight.t())
    return z.to(sum_dtype(z.dtype))


def _add_product(out: Tensor, a: Tensor, b: Tensor) -> None:
    if out.dtype == a.dtype:
        out.addmm_(a, b)
    else:
        out += a @ b
