"""Which implementation of the operators runs, and why."""

from __future__ import annotations

import os

import torch

CHOICES = ("auto", "torch")


def requested_backend() -> str:
    """``FASTAE_BACKEND``: ``auto`` or ``torch``.

    Raises:
        ValueError: another value. (``triton`` needs kernels, which this version does not have yet.)
    """
    value = os.environ.get("FASTAE_BACKEND", "auto").strip().lower() or "auto"
    if value == "triton":
        raise ValueError("FASTAE_BACKEND: 'triton' is asked for, but this version has no Triton kernels yet")
    if value not in CHOICES:
        raise ValueError(f"FASTAE_BACKEND: {value!r} is not one of {', '.join(CHOICES)}")
    return value


def _problem() -> str | None:
    try:
        requested_backend()
    except ValueError as error:
        return str(error)
    return None


PROBLEM = _problem()
"""What is wrong with FASTAE_BACKEND: raised at first use, so that importing never fails."""


def backend_of(op: str, device: torch.device) -> tuple[str, str]:
    """(backend, reason) of an operator for tensors on ``device``."""
    if requested_backend() == "torch":
        return "torch", "FASTAE_BACKEND=torch"
    if device.type == "cpu":
        return (
            "torch",
            "PyTorch's products, the passes between them in blocks that fit the cache",
        )
    return "torch", "this version has no Triton kernels yet"
