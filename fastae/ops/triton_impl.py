"""The operators on Triton kernels, in the terms of their schemas; what kernels do not serve goes to PyTorch.

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
from ..corruption import mask_width
from ..precision import outside_autocast
from . import torch_impl


def _served(function: Callable[..., Any]) -> Callable[..., Any]:
    """Float64 goes to the PyTorch implementation."""
    other = getattr(torch_impl, function.__name__)

    @functools.wraps(function)
    def wrapped(*args: Any) -> Any:
        first = args[0].dtype
        return (function if first in operators.DTYPES else other)(*args)

    return outside_autocast(wrapped)


def _or_none(tensor: Tensor | None, like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    return like.new_empty(0, dtype=dtype) if tensor is None else tensor


def _sums_or_none(sums: Tensor | None, like: Tensor) -> Tensor:
    return _or_none(sums, like, torch.float32)


def _mask(seed: Tensor, stream: int, p: float, width: int) -> noise.Mask:
    return noise.Mask(seed, stream, philox.threshold(p, width), noise.BITS[width])


def _dropout(seed: Tensor | None, p: float) -> noise.Mask | None:
    if seed is None or not p:
        return None
    mask = _mask(seed, philox.STREAM_DROPOUT, p, philox.MASK_WIDTH)
    return mask._replace(keep_scale=philox.keep_scale(p))


def _code_noise(kind: str, std: float) -> noise.Noise | None:
    return None if kind == "none" else noise.Noise(noise.CODE_NOISES[kind], philox.STREAM_CODE_NOISE, std)


def _corruption(seed: Tensor, kind: str, params: list[float], stream: int) -> noise.Corruption:
    function = noise.CORRUPTIONS[kind]
    if kind == "gaussian":
        return noise.Corruption(function, seed, stream, std=params[0])
    width = mask_width(kind)
    event = _mask(seed, stream, params[0], width)[:4]
    if kind == "salt_and_pepper":
        p, low, high = params
        return noise.Corruption(function, *event, salt=philox.threshold(p / 2.0), low=low, high=high)
    return noise.Corruption(function, *event, hits=philox.hit_count(params[0], width))


@_served
def corrupt(x: Tensor, seed: Tensor, kind: str, params: list[float], stream: int) -> Tensor:
    if params[0] == 0.0:
        return x.clone(memory_format=torch.contiguous_format)
    return operators.corrupt(x, _corruption(seed, kind, params, stream))


@_served
def corrupt_backward(grad: Tensor, seed: Tensor, kind: str, params: list[float], stream: int) -> Tensor:
    if kind == "gaussian" or params[0] == 0.0:
        return grad.clone(memory_format=torch.contiguous_format)
    width = mask_width(kind)
    mask = _mask(seed, stream, params[0], width)
    if kind == "swap":
        return operators.swap_backward(grad, mask, philox.hit_count(params[0], width))
    return operators.corrupt(grad, noise.Corruption(noise.CORRUPTIONS["masking"], *mask[:4]))


@_served
def random_signs(like: Tensor, seed: Tensor, stream: int) -> Tensor:
    return operators.random_signs(like, seed, stream)


@_served
def perturb(code: Tensor, seed: Tensor, noise: str, noise_std: float, dropout: float) -> Tensor:
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
    sq_norms: Tensor | None,
    base_code: Tensor | None,
    base_preact: Tensor | None,
    l1: bool,
    code_sum: bool,
    seed: Tensor | None,
    noise: str,
    noise_std: float,
    dropout: float,
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
    scale: Tensor | None,
    penalty_scale: Tensor | None,
    sq_norms: Tensor | None,
    l1_scale: Tensor | None,
    column_grad: Tensor | None,
    extra: Tensor | None,
    seed: Tensor | None,
    dropout: float,
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
    scale: Tensor | None,
    weight: Tensor | None,
    u: Tensor | None,
    a2: Tensor | None,
    b2: Tensor | None,
    scale2: Tensor | None,
) -> Tensor:
    return operators.weight_grad(a, b, scale, weight, u, a2, b2, scale2)


def _emphasis(seed: Tensor | None, p: float, width: int, corrupted: float, clean: float) -> dict[str, Any]:
    """Which entries count how much; an event of probability 0 hits none."""
    if seed is None:
        return {}
    mask = _mask(seed, philox.STREAM_CORRUPTION, p, width)
    return {"mask": mask, "corrupted": corrupted if p else clean, "clean": clean}


@_served
def decode_loss(
    code: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    loss: str,
    output_activation: str,
    seed: Tensor | None,
    p: float,
    width: int,
    corrupted: float,
    clean: float,
    column_sums: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    rows, grad, sums = operators.decode_loss(
        code,
        weight,
        bias,
        target,
        loss,
        output_activation,
        **_emphasis(seed, p, width, corrupted, clean),
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
    output_activation: str,
    seed: Tensor | None,
    p: float,
    width: int,
    corrupted: float,
    clean: float,
) -> Tensor:
    return operators.decode_loss_target_grad(
        code,
        weight,
        bias,
        target,
        loss,
        output_activation,
        **_emphasis(seed, p, width, corrupted, clean),
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
