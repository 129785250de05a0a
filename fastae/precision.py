"""Which dtypes are computed and summed in."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")


def sum_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype that sums over ``dtype`` are kept in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def autocast_enabled(device: str) -> bool:
    """Whether autocast is on for a type of device; meta has none.

    torch 2.11's compiler cannot trace ``torch.amp.is_autocast_available``.
    """
    return device != "meta" and torch.is_autocast_enabled(device)


def outside_autocast(function: Callable[P, R]) -> Callable[P, R]:
    """Runs an operator outside autocast: the dtypes it was given are the ones it works in."""

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        device = args[0].device.type  # pyright: ignore[reportAttributeAccessIssue]
        if not autocast_enabled(device):
            return function(*args, **kwargs)
        with torch.autocast(device, enabled=False):
            return function(*args, **kwargs)

    return wrapped


def float32_products(device: str) -> str:
    """How PyTorch multiplies float32 on a type of device, in the words of ``set_float32_matmul_precision``.

    Its own getter raises where newer settings differ from each other.
    """
    backend: Any = torch.backends.mkldnn if device == "cpu" else torch.backends.cuda
    return {"tf32": "high", "bf16": "medium"}.get(backend.matmul.fp32_precision, "highest")
