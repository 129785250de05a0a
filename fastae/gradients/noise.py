"""Corruption of the input and noise on the code."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import Function

from .. import ops
from ..corruption import Corruption
from ..share import current_share
from .once import Context, first_order


def draw(
    x: Tensor, seed: Tensor, corruption: Corruption, stream: int, dtype: torch.dtype | None = None
) -> Tensor:
    """A draw x~ [M, D] of a corruption of x [M, D], in ``dtype`` or that of x.

    Rows of a shared batch swap entries with all its rows.
    """
    share = current_share()
    if share is None or corruption.kind != "swap":
        return ops.corrupt(x, seed, corruption.kind, corruption.params, stream, dtype)
    if x.requires_grad:
        raise ValueError("x: expected no gradient to rows that are swapped with those of other processes")
    whole = ops.corrupt(
        share.gather(x), seed[:1].view(torch.int64), corruption.kind, corruption.params, stream, dtype
    )
    return whole[share.first : share.first + len(x)]


class Corrupt(Function):
    """A draw x~ [M, D] of a corruption of x [M, D]; gradients flow where an entry was kept."""

    @staticmethod
    def forward(ctx: Context, x: Tensor, seed: Tensor, corruption: Corruption, stream: int) -> Tensor:
        ctx.save_for_backward(seed)
        ctx.corruption, ctx.stream = corruption, stream
        return draw(x, seed, corruption, stream)

    @staticmethod
    @first_order
    def backward(ctx: Context, grad: Tensor) -> tuple[Tensor | None, ...]:
        (seed,) = ctx.saved_tensors
        corruption: Corruption = ctx.corruption
        grad = ops.corrupt_backward(grad, seed, corruption.kind, corruption.params, ctx.stream)
        return grad, None, None, None


class Perturb(Function):
    """The code as the decoder sees it, [M, H]; binary draws pass their gradient straight through."""

    @staticmethod
    def forward(
        ctx: Context, code: Tensor, seed: Tensor, noise: str, noise_std: float, dropout: float
    ) -> Tensor:
        ctx.save_for_backward(seed)
        ctx.dropout = dropout
        return ops.perturb(code, seed, noise, noise_std, dropout)

    @staticmethod
    @first_order
    def backward(ctx: Context, grad: Tensor) -> tuple[Tensor | None, ...]:
        (seed,) = ctx.saved_tensors
        if ctx.dropout:
            grad = ops.perturb(grad, seed, "none", dropout=ctx.dropout)
        return grad, None, None, None, None
