"""Devices by name."""

from __future__ import annotations

import torch


def resolve_device(name: str) -> torch.device:
    """A device that tensors can be made on; ``"auto"`` takes a GPU where there is one, ``"gpu"`` needs one.

    Raises:
        ValueError: there is no such device, or it cannot be used.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("meta"):
        raise ValueError(f"device: {name!r} has no memory to train in")
    if name == "gpu":
        name = "cuda"
        if not torch.cuda.is_available():
            raise ValueError(f"device: 'gpu' cannot be used: torch {torch.__version__} finds no GPU")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device: {name!r} cannot be used ({str(error).splitlines()[0]})") from None
    return device
