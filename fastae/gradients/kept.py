"""The tensor from which a layer's slopes are computed in the backward pass.

An operation in place may follow a layer wherever it may follow PyTorch's own activation. Slopes come from the
pre-activation where that is kept anyway, and ask for nothing where they are 1. Otherwise they come from the
code, which the caller owns: one that was changed is computed again.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..activations import get_activation
from .once import Context

_PYTORCH_KEEPS = frozenset({"sigmoid", "tanh", "relu"})  # the output, and raises where it was changed


def keep(ctx: Context, code: Tensor, preact: Tensor, activation: str) -> Tensor | None:
    """The tensors that ``ctx`` saves of an output ``code`` [M, H] and its pre-activation, if any."""
    ctx.owned = ctx.version = None
    if activation == "linear":
        return None
    if get_activation(activation).needs_preactivation:
        return preact
    if activation in _PYTORCH_KEEPS:
        return code
    if torch.compiler.is_compiling():
        return code.clone()  # compiled graphs do not tell a saved output from the changed one
    if torch._C._autograd._top_saved_tensors_default_hooks(True) is not None:  # pyright: ignore[reportAttributeAccessIssue]
        return code.clone()  # hooks may keep a tensor of their own until then, or give back the caller's
    ctx.owned, ctx.version = code.detach(), code._version
    return code.data  # with a count of changes of its own, so that autograd does not raise


def kept(ctx: Context, saved: Tensor | None, grad: Tensor, encode: Callable[[], Tensor]) -> Tensor:
    """The tensor for ``code`` and ``preact`` of the operators; ``encode`` computes the code again."""
    if saved is None:  # linear: only the shape is read
        return grad
    if ctx.version is None:
        return saved
    unchanged = ctx.owned is not None and ctx.owned._version == ctx.version
    ctx.owned = None  # memory that autograd would have freed by now; a second pass computes the code again
    return saved if unchanged else encode()
