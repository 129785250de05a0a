"""Checks of the tensors that the public functions take."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .losses import get_loss
from .tensors import autocast_enabled


def check_floating(name: str, x: Tensor) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(x).__name__}")
    if not x.is_floating_point():
        raise ValueError(f"{name}: expected a floating-point tensor, got {x.dtype}")


def check_like(name: str, tensor: Tensor, shape: tuple[int, ...] | None, like: Tensor) -> None:
    """Raises for another device or dtype than the weight's, and for another shape than ``shape`` if given."""
    if shape is not None and tensor.shape != shape:
        raise ValueError(f"{name}: expected shape {list(shape)}, got {list(tensor.shape)}")
    if tensor.device != like.device:
        raise ValueError(f"{name}: is on {tensor.device}, but the weight on {like.device}")
    if tensor.dtype != like.dtype and not autocast_enabled(like.device.type):
        raise ValueError(f"{name}: is {tensor.dtype}, but the weight is {like.dtype}")


def check_linear(name: str, x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    check_floating(name, x)
    check_floating("weight", weight)
    if weight.dim() != 2:
        raise ValueError(f"weight: expected two dimensions [out, in], got shape {list(weight.shape)}")
    if x.dim() < 1 or x.shape[-1] != weight.shape[1]:
        raise ValueError(f"{name}: expected shape [*, {weight.shape[1]}] for the weight, got {list(x.shape)}")
    check_like(name, x, None, weight)
    if bias is not None:
        check_like("bias", bias, weight.shape[:1], weight)


def check_target(target: Tensor, shape: tuple[int, ...] | torch.Size, like: Tensor) -> None:
    check_floating("target", target)
    if tuple(target.shape) != tuple(shape):
        raise ValueError(f"target: expected shape {list(shape)}, got {list(target.shape)}")
    if target.device != like.device:
        raise ValueError(f"target: is on {target.device}, but the input on {like.device}")


def entry_weight_of(weight: Tensor | None, x: Tensor, loss: str) -> Tensor | None:
    """Weights of the entries of x [*, D] as [M or 1, D or 1] for its M rows; no gradient flows to them."""
    if weight is None:
        return None
    check_floating("entry_weight", weight)
    if weight.dim() > x.dim() or any(
        size not in (1, of_x) for size, of_x in zip(reversed(weight.shape), reversed(x.shape), strict=False)
    ):
        raise ValueError(
            f"entry_weight: expected a shape that broadcasts to {list(x.shape)}, got {list(weight.shape)}"
        )
    if weight.device != x.device:
        raise ValueError(f"entry_weight: is on {weight.device}, but the input on {x.device}")
    if get_loss(loss).of_rows and x.shape[-1] != 1 and (not weight.dim() or weight.shape[-1] == 1):
        raise ValueError(
            f"entry_weight: expected weights of features, got {list(weight.shape)}; those of whole rows do "
            f"not change {loss}: weigh the values of reduction='none'"
        )
    columns, leading = weight.shape[-1] if weight.dim() else 1, x.shape[:-1]
    if all(size == 1 for size in weight.shape[:-1]):
        return weight.detach().reshape(1, columns)
    return weight.detach().expand(*leading, columns).reshape(math.prod(leading), columns)
