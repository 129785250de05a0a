"""Devices by name."""

from __future__ import annotations

import torch


def resolve_device(name: str) -> torch.device:
    """A device that tensors can be made on; ``"auto"`` takes an accelerator where there is one.

    Raises:
        ValueError: there is no such device, or it cannot be used.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("meta"):
        raise ValueError(f"device: {name!r} has no memory to train in")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device: {name!r} cannot be used ({str(error).splitlines()[0]})") from None
    return device
