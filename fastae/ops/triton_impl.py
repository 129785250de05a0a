"""The operators on Triton kernels, as they are declared; float64 goes to PyTorch.

Imported on first use, since it imports Triton.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from fastae_kernels import operators
from fastae_kernels.device import noise
from torch import Tensor

from .. import philox
from ..corruption import Corruption, Event, make_corruption
from ..tensors import outside_autocast
from . import torch_impl


def _served(function: Callable[..., Any]) -> Callable[..., Any]:
    """Float64 goes to the PyTorch implementation."""
    other = getattr(torch_impl, function.__name__)

    @functools.wraps(function)
    def wrapped(first: Tensor, *args: Any, **options: Any) -> Any:
        return (function if first.dtype in operators.DTYPES else other)(first, *args, **options)

    return outside_autocast(wrapped)


def _or_none(tensor: Tensor | None, like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    return like.new_empty(0, dtype=dtype) if tensor is None else tensor


def _sums_or_none(sums: Tensor | None, like: Tensor) -> Tensor:
    return _or_none(sums, like, torch.float32)


def _mask(seed: Tensor, stream: int, event: Event) -> noise.Mask:
    return noise.Mask(seed, stream, event.threshold, noise.BITS[event.width])


def _dropout(seed: Tensor | None, p: float) -> noise.Mask | None:
    if seed is None or not p:
        return None
    return _mask(seed, philox.STREAM_DROPOUT, Event(p))._replace(keep_scale=philox.keep_scale(p))


def _code_noise(kind: str, std: float) -> noise.Noise | None:
    return None if kind == "none" else noise.Noise(noise.CODE_NOISES[kind], philox.STREAM_CODE_NOISE, std)


def _corruption(seed: Tensor, corruption: Corruption, stream: int) -> noise.Corruption:
    """The kernels' arguments: the event's draws, and the numbers by the names that they have there."""
    numbers = {name: value for name, value in vars(corruption).items() if name in noise.Corruption._fields}
    arguments = noise.Corruption(noise.CORRUPTIONS[corruption.kind], seed, stream, **numbers)
    event = corruption.event
    if event is None:
        return arguments
    return arguments._replace(
        threshold=event.threshold, bits=noise.BITS[event.width], salt=event.half, hits=event.hits
    )


@_served
def corrupt(x: Tensor, seed: Tensor, kind: str, params: list[float], stream: int) -> Tensor:
    corruption = make_corruption(kind, params)
    if corruption.is_identity:
        return x.clone(memory_format=torch.contiguous_format)
    return operators.corrupt(x, _corruption(seed, corruption, stream))


@_served
def corrupt_backward(grad: Tensor, seed: Tensor, kind: str, params: list[float], stream: int) -> Tensor:
    corruption = make_corruption(kind, params)
    event = corruption.event
    if event is None or corruption.is_identity:
        return grad.clone(memory_format=torch.contiguous_format)
    mask = _mask(seed, stream, event)
    if kind == "swap":
        return operators.swap_backward(grad, mask, event.hits)
    return operators.corrupt(grad, noise.Corruption(noise.CORRUPTIONS["masking"], *mask[:4]))


@_served
def random_signs(like: Tensor, seed: Tensor, stream: int) -> Tensor:
    return operators.random_signs(like, seed, stream)


@_served
def perturb(code: Tensor, seed: Tensor, noise: str, noise_std: float = 0.0, dropout: float = 0.0) -> Tensor:
    return operators.perturb(code, _code_noise(noise, noise_std), _dropout(seed, dropout), seed)


@_served
def squared_norms(weight: Tensor) -> Tensor:
    return operators.squared_norms(weight)


@_served
def encode(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str,
    sq_norms: Tensor | None = None,
    base_code: Tensor | None = None,
    base_preact: Tensor | None = None,
    l1: bool = False,
    code_sum: bool = False,
    seed: Tensor | None = None,
    noise: str = "none",
    noise_std: float = 0.0,
    dropout: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    code, noisy, preact, penalty, l1_rows, sums = operators.encode(
        x,
        weight,
        bias,
        activation,
        sq_norms=sq_norms,
        base=None if base_code is None else (base_code, base_preact),
        l1=l1,
        code_sum=code_sum,
        noise=None if seed is None else _code_noise(noise, noise_std),
        dropout=_dropout(seed, dropout),
        seed=seed,
    )
    return (
        code,
        _or_none(noisy, x),
        _or_none(preact, x),
        _sums_or_none(penalty, x),
        _sums_or_none(l1_rows, x),
        _sums_or_none(sums, x),
    )


@_served
def code_grad(
    grad: Tensor,
    weight: Tensor | None,
    code: Tensor,
    preact: Tensor,
    activation: str,
    scale: Tensor | None = None,
    penalty_scale: Tensor | None = None,
    sq_norms: Tensor | None = None,
    l1_scale: Tensor | None = None,
    column_grad: Tensor | None = None,
    extra: Tensor | None = None,
    seed: Tensor | None = None,
    dropout: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    dz, db, u = operators.code_grad(
        grad,
        weight,
        code,
        preact,
        activation,
        dropout=_dropout(seed, dropout),
        scale=scale,
        penalty_scale=penalty_scale,
        sq_norms=sq_norms,
        l1_scale=l1_scale,
        column_grad=column_grad,
        extra=extra,
    )
    return dz, db, _sums_or_none(u, code)


@_served
def weight_grad(
    a: Tensor,
    b: Tensor,
    scale: Tensor | None = None,
    weight: Tensor | None = None,
    u: Tensor | None = None,
    a2: Tensor | None = None,
    b2: Tensor | None = None,
    scale2: Tensor | None = None,
) -> Tensor:
    return operators.weight_grad(a, b, scale, weight, u, a2, b2, scale2)


def _emphasis(
    seed: Tensor | None, kind: str, params: list[float] | None, corrupted: float, clean: float
) -> dict[str, Any]:
    """The weights of hit and of other entries; an event of probability 0 hits none."""
    if seed is None:
        return {}
    event = make_corruption(kind, params or []).event
    assert event is not None
    mask = _mask(seed, philox.STREAM_CORRUPTION, event)
    return {"mask": mask, "corrupted": corrupted if event.p else clean, "clean": clean}


@_served
def decode_loss(
    code: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    loss: str,
    output_activation: str = "linear",
    seed: Tensor | None = None,
    kind: str = "none",
    params: list[float] | None = None,
    corrupted: float = 1.0,
    clean: float = 1.0,
    column_sums: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    rows, grad, sums = operators.decode_loss(
        code,
        weight,
        bias,
        target,
        loss,
        output_activation,
        **_emphasis(seed, kind, params, corrupted, clean),
        column_sums=column_sums,
    )
    return rows, grad, _sums_or_none(sums, code)


@_served
def decode_loss_target_grad(
    code: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    loss: str,
    output_activation: str = "linear",
    seed: Tensor | None = None,
    kind: str = "none",
    params: list[float] | None = None,
    corrupted: float = 1.0,
    clean: float = 1.0,
) -> Tensor:
    return operators.decode_loss_target_grad(
        code,
        weight,
        bias,
        target,
        loss,
        output_activation,
        **_emphasis(seed, kind, params, corrupted, clean),
    )


@_served
def slope_difference_grad(
    code: Tensor,
    preact: Tensor,
    code2: Tensor,
    preact2: Tensor,
    activation: str,
    sq_norms: Tensor,
    scale: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    return operators.slope_difference_grad(code, preact, code2, preact2, activation, sq_norms, scale)
