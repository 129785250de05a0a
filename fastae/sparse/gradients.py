"""Gradients of the parts of a sparse objective: hand-derived where a dense matrix would arise otherwise.

With entries e = (row n, latent j) of a code, g the gradient of the reconstruction and d of the entry's value,

    d_e = g_n . Wd_j        dWd_j = sum_e h_e g_n        dWe_j = sum_e dz_e x_n        db_j = sum_e dz_e

Second derivatives raise.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import Function

from ..gradients.once import first_order
from ..ops import segment_loss, segment_sums
from ..ops.segments import segments_of
from . import bags
from .bags import Entries
from .deferred import DeferredGradients, hand_over
from .reference import window
from .specs import JumpReLU

Context = Any


class Preactivations(Function):
    """Pre-activations z [E] that a selection found, with their gradients.

    ``centred`` is x - center in the dtype of the products; x [N, D] and center [D] stand for it.
    """

    @staticmethod
    def forward(
        ctx: Context,
        z: Tensor,
        x: Tensor,
        center: Tensor | None,
        weight: Tensor,
        bias: Tensor | None,
        centred: Tensor,
        deferred: DeferredGradients | None,
        *entries: Tensor,
    ) -> Tensor:
        ctx.deferred = deferred
        ctx.save_for_backward(x, center, weight, bias, centred, *entries)
        return z.view_as(z)

    @staticmethod
    @first_order
    def backward(ctx: Context, dz: Tensor) -> tuple[Tensor | None, ...]:
        x, center, weight, bias, centred, *places = ctx.saved_tensors
        entries = Entries(*places)
        _, need_x, need_center, need_weight, need_bias, *_ = ctx.needs_input_grad
        d_x = d_center = d_weight = None
        db = bags.latent_sums(dz, entries)
        if need_x:
            rows = bags.decode(dz, weight, entries.latents, entries.offsets)
            d_x = rows.view(len(rows) // max(len(x), 1), *x.shape).sum(0).to(x.dtype)
        if need_center:
            # one product with a vector, rather than the gradient of every row
            d_center = -(db.to(weight.dtype) @ weight if d_x is None else d_x.sum(0)).to(center.dtype)
        if need_weight:
            to = None if ctx.deferred is None else ctx.deferred.encoder
            d_weight = hand_over(bags.by_latent(centred, dz, entries), to)
        d_bias = db.to(bias.dtype) if need_bias else None
        return None, d_x, d_center, d_weight, d_bias, None, None, *(None,) * len(places)


class Decode(Function):
    """The sum of values times decoder rows per bag, [B, Do]."""

    @staticmethod
    def forward(
        ctx: Context, values: Tensor, weight: Tensor, deferred: DeferredGradients | None, *entries: Tensor
    ) -> Tensor:
        ctx.deferred = deferred
        ctx.save_for_backward(values, weight, *entries)
        places = Entries(*entries)
        return bags.decode(values, weight, places.latents, places.offsets)

    @staticmethod
    @first_order
    def backward(ctx: Context, grad: Tensor) -> tuple[Tensor | None, ...]:
        values, weight, *places = ctx.saved_tensors
        entries, d_weight = Entries(*places), None
        if ctx.needs_input_grad[1] and ctx.deferred is None:
            d_values, d_weight = bags.decode_grad(grad, values, weight, entries)
        else:
            d_values = bags.decode_value_grad(grad, weight, entries)
            if ctx.needs_input_grad[1]:
                hand_over(bags.by_latent(grad.to(weight.dtype), values, entries), ctx.deferred.decoder)
        return d_values.to(values.dtype), d_weight, None, *(None,) * len(places)


class DecodeLoss(Function):
    """(|e|^2 [levels, N], the residual -e [N, Do] of the first level).

    Per bag e = sum_k values_k W_k + bias - target. The first ``number`` entries are those of the first N
    bags, with targets [N, Do]. N further bags have the residual for their target and no bias; without them
    the second result is empty. It is a constant.
    """

    @staticmethod
    def forward(
        ctx: Context,
        values: Tensor,
        weight: Tensor,
        target: Tensor,
        bias: Tensor | None,
        deferred: DeferredGradients | None,
        number: int,
        *entries: Tensor,
    ) -> tuple[Tensor, Tensor]:
        places = Entries(*entries)
        N, levels = len(target), []
        first = places.latents[:number], places.offsets[: N + 1], values[:number]
        levels.append(segment_loss(weight, *first, target, bias))
        grad = levels[0].grad
        residual = grad.new_empty(0)
        if len(places.offsets) > N + 1:
            residual = grad * -0.5
            others = places.latents[number:], places.offsets[N:] - number, values[number:]
            levels.append(segment_loss(weight, *others, residual))
            grad = torch.cat([level.grad for level in levels])
        ctx.deferred = deferred
        ctx.save_for_backward(values, weight, target, bias, grad, *entries)
        ctx.mark_non_differentiable(residual)
        return torch.stack([level.loss for level in levels]), residual

    @staticmethod
    @first_order
    def backward(ctx: Context, d_loss: Tensor, d_residual: None) -> tuple[Tensor | None, ...]:
        values, weight, target, bias, grad, *places = ctx.saved_tensors
        entries, d_weight, N = Entries(*places), None, len(target)
        _, need_weight, need_target, need_bias, *_ = ctx.needs_input_grad
        scale = d_loss.flatten()[entries.bags]
        sums = bags.by_latent(grad, values * scale, entries)
        if need_weight and ctx.deferred is None:
            both = segment_sums(*sums, weight, entries.order)
            d_values, d_weight = both.dots, both.sums
        else:
            d_values = bags.decode_value_grad(grad, weight, entries)
            if need_weight:
                hand_over(sums, ctx.deferred.decoder)
        d_target = d_bias = None
        if need_target:
            d_target = (grad[:N] * -d_loss[0][:, None]).to(target.dtype)
        if need_bias:
            d_bias = (d_loss[0] @ grad[:N].to(d_loss.dtype)).to(bias.dtype)
        d_values = (d_values * scale).to(values.dtype)
        return d_values, d_weight, d_target, d_bias, None, None, *(None,) * len(places)


class AtLatents(Function):
    """The values of a vector [H] at the latents of entries, [E]; gradients are summed in a fixed order."""

    @staticmethod
    def forward(ctx: Context, vector: Tensor, *entries: Tensor) -> Tensor:
        ctx.save_for_backward(vector, *entries)
        return vector[Entries(*entries).latents]

    @staticmethod
    @first_order
    def backward(ctx: Context, grad: Tensor) -> tuple[Tensor | None, ...]:
        vector, *places = ctx.saved_tensors
        return bags.latent_sums(grad, Entries(*places)).to(vector.dtype), *(None,) * len(places)


class BagSums(Function):
    """The sum of values [E] per bag, [B], in a fixed order."""

    @staticmethod
    def forward(ctx: Context, values: Tensor, offsets: Tensor) -> Tensor:
        ctx.entries = len(values)
        ctx.save_for_backward(offsets)
        return bags.sums(values, offsets)

    @staticmethod
    @first_order
    def backward(ctx: Context, grad: Tensor) -> tuple[Tensor, None]:
        (offsets,) = ctx.saved_tensors
        return grad[segments_of(offsets, ctx.entries)], None


class Jump(Function):
    """(z 1[z > theta], 1[z > theta]) elementwise; ``theta`` broadcasts over z as rows or is of its shape."""

    @staticmethod
    def forward(ctx: Context, z: Tensor, threshold: Tensor, rule: JumpReLU) -> tuple[Tensor, Tensor]:
        ctx.rule = rule
        ctx.save_for_backward(z, threshold)
        active = (z > threshold).to(z.dtype)
        return z * active, active

    @staticmethod
    @first_order
    def backward(ctx: Context, d_code: Tensor, d_active: Tensor) -> tuple[Tensor | None, ...]:
        z, threshold = ctx.saved_tensors
        rule: JumpReLU = ctx.rule
        slope = window((z - threshold) / rule.bandwidth, rule.kernel) / rule.bandwidth
        slope.mul_(d_code * threshold + d_active)
        d_z = (z > threshold) * d_code
        if rule.to_input:
            d_z += slope
        d_threshold = -(slope if threshold.shape == z.shape else slope.sum(0))
        return d_z, d_threshold.to(threshold.dtype), None
