"""Forms of tensors that the operators take: rows, dtypes of sums and products, autocast."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")


def as_rows(x: Tensor) -> Tensor:
    """[*, D] as [M, D] with unit last stride, without a copy where the strides allow."""
    rows = x.reshape(-1, x.shape[-1]) if x.numel() else x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    return rows if rows.stride(-1) == 1 or rows.shape[-1] <= 1 else rows.contiguous()


def reduce_rows(rows: Tensor, reduction: str, leading: torch.Size) -> Tensor:
    """Values per row [M], reduced by ``"mean"`` or ``"sum"``, or (``"none"``) in the shape ``leading``."""
    if reduction == "none":
        return rows.view(leading)
    return rows.mean() if reduction == "mean" else rows.sum()


def sum_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype that sums over values of ``dtype`` are kept in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def autocast_enabled(device: str) -> bool:
    """True if autocast is on for a type of device."""
    return device != "meta" and torch.is_autocast_enabled(device)


def autocast_like_linear(x: Tensor, *others: Tensor | None) -> tuple[Tensor, ...]:
    """The tensors as ``nn.Linear`` would see them under autocast: in its dtype, float64 unchanged."""
    device = x.device.type
    if not autocast_enabled(device):
        return x, *others  # pyright: ignore[reportReturnType]
    dtype = torch.get_autocast_dtype(device)
    return tuple(
        t.to(dtype) if t is not None and t.is_floating_point() and t.dtype != torch.float64 else t
        for t in (x, *others)
    )  # pyright: ignore[reportReturnType]


def outside_autocast(function: Callable[P, R]) -> Callable[P, R]:
    """Make an operator's implementation work in the dtypes it was given, whatever autocast says."""

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        device = args[0].device.type  # pyright: ignore[reportAttributeAccessIssue]
        if not autocast_enabled(device):
            return function(*args, **kwargs)
        with torch.autocast(device, enabled=False):
            return function(*args, **kwargs)

    return wrapped


def float32_products(device: str) -> str:
    """The precision of float32 products on a type of device, as ``set_float32_matmul_precision`` names it.

    PyTorch's own getter raises where the newer settings differ from each other.
    """
    backend: Any = torch.backends.mkldnn if device == "cpu" else torch.backends.cuda
    return {"tf32": "high", "bf16": "medium"}.get(backend.matmul.fp32_precision, "highest")
