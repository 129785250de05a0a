"""Operands and results as kernels take them: allocation, strides and alignment."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..device.noise import Mask


def empty(like: Tensor, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
    return torch.empty(shape, dtype=dtype or like.dtype, device=like.device)


def empty_float(like: Tensor, *shape: int) -> Tensor:
    return empty(like, *shape, dtype=torch.float32)


def strides(matrix: Tensor | None) -> tuple[int | None, int | None]:
    """Strides as kernels take them: ``None`` where the matrix is contiguous."""
    if matrix is None or matrix.is_contiguous():
        return None, None
    return matrix.stride(0), matrix.stride(1)


def strides_over(matrix: Tensor | None, shape: torch.Size) -> tuple[int | None, int | None]:
    """:func:`strides` of a matrix that broadcasts to ``shape``."""
    if matrix is None or matrix.shape == shape:
        return strides(matrix)
    rows, columns = matrix.shape
    return matrix.stride(0) if rows > 1 else 0, matrix.stride(1) if columns > 1 else 0


def unit(size: int) -> int:
    """The power of two up to 8 that divides ``size``; 1 for multiples of 16, which Triton sees by itself."""
    return 1 if size % 16 == 0 else math.gcd(size, 8)


def blocks(size: int, block: int) -> int:
    return -(-size // block)


def aligned(operand: Tensor) -> bool:
    """True if rows (or columns, where those are contiguous) start at multiples of 16 bytes."""
    rows, columns = (0, 1) if operand.stride(1) == 1 else (1, 0)
    return (
        operand.stride(columns) == 1
        and operand.stride(rows) * operand.element_size() % 16 == 0
        and operand.stride(rows) >= operand.shape[columns]
        and operand.data_ptr() % 16 == 0
        and operand.numel() > 0
    )


def all_aligned(*operands: Tensor | None) -> bool:
    return all(aligned(operand) for operand in operands if operand is not None)


def vector(vector: Tensor | None) -> Tensor | None:
    return None if vector is None else vector.contiguous()


def mask_fields(mask: Mask | None) -> dict[str, Any]:
    return (mask or Mask())._asdict()


def scale_and_stride(scale: Tensor | None) -> tuple[Tensor | None, int]:
    """A scale and the stride from row to row: 0 for a scalar."""
    return scale, scale.stride(0) if scale is not None and scale.dim() else 0
