"""First derivatives only: a later second derivative raises."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import Function

Context = Any


class _SecondDerivative(Function):
    """The identity on a first derivative, tied to all it depends on; differentiating it raises."""

    @staticmethod
    def forward(ctx: Context, grad: Tensor, *dependencies: Tensor) -> Tensor:
        return grad.view_as(grad)

    @staticmethod
    def backward(ctx: Context, *grads: Tensor) -> Tensor:
        raise RuntimeError(
            "fastae's fused operators have no second derivative; "
            "the functions of fastae.reference can be differentiated twice"
        )


def first_order(
    backward: Callable[..., tuple[Tensor | None, ...]],
) -> Callable[..., tuple[Tensor | None, ...]]:
    """Make a second derivative through ``backward`` raise.

    torch's ``once_differentiable`` does so only where the upstream gradient itself requires one: under
    ``create_graph=True`` the dependence on the inputs would be dropped in silence.
    """

    @functools.wraps(backward)
    def wrapped(ctx: Context, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        if not torch.is_grad_enabled():
            return backward(ctx, *grads)
        with torch.no_grad():
            results = backward(ctx, *grads)
        dependencies = [t for t in (*grads, *ctx.saved_tensors) if t is not None and t.requires_grad]
        if not dependencies:
            return results
        return tuple(None if r is None else _SecondDerivative.apply(r, *dependencies) for r in results)

    return wrapped
