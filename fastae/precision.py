"""Which dtypes are computed and summed in."""

from __future__ import annotations

import torch


def sum_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype that sums over ``dtype`` are kept in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def autocast_enabled(device: str) -> bool:
    """Whether autocast is on for a type of device; devices that have none, such as meta, say no."""
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
