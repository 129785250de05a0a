"""The choice of an implementation for the operators, with its reason."""

from __future__ import annotations

import functools
import importlib.util
import os

import torch

CHOICES = ("auto", "triton", "torch")


def requested_backend() -> str:
    """``FASTAE_BACKEND``: ``auto``, ``triton`` or ``torch``.

    Raises:
        ValueError: another value, or ``triton`` where Triton is not installed.
    """
    value = os.environ.get("FASTAE_BACKEND", "auto").strip().lower() or "auto"
    if value not in CHOICES:
        raise ValueError(f"FASTAE_BACKEND: {value!r} is not one of {', '.join(CHOICES)}")
    if value == "triton" and not _triton_installed():
        raise ValueError("FASTAE_BACKEND: 'triton' is asked for, but Triton is not installed")
    return value


@functools.cache
def _triton_installed() -> bool:
    return importlib.util.find_spec("triton") is not None


@functools.cache
def runs_pytorch(device: torch.device) -> bool:
    """True if the operators run in PyTorch on a device."""
    return backend_of("encode", device)[0] == "torch"


def kernels_on_cpu() -> bool:
    """True if kernels are asked for on CPU tensors, too (they run under Triton's interpreter)."""
    return requested_backend() == "triton"


# as torch.compiler.assume_constant_result does, which imports the compiler: that takes seconds
kernels_on_cpu._dynamo_marked_constant = True  # pyright: ignore[reportFunctionMemberAccess]


def backend_of(op: str, device: torch.device) -> tuple[str, str]:
    """(backend, reason) of an operator for tensors on ``device``.

    Raises:
        ValueError: kernels are asked for by FASTAE_BACKEND=triton and cannot run there.
    """
    requested = requested_backend()
    if requested == "torch":
        return "torch", "FASTAE_BACKEND=torch"
    if requested == "auto" and device.type == "cpu":
        return "torch", "PyTorch's products, the passes between them in blocks that fit the cache"
    if not _triton_installed():
        return "torch", "Triton is not installed"
    from fastae_kernels import launch

    problem = launch.problem(device)
    if problem is None:
        return "triton", "fused kernels; float64 by PyTorch"
    if requested == "triton":
        raise ValueError(f"FASTAE_BACKEND: 'triton' is asked for, but {problem}")
    return "torch", problem
