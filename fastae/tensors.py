"""Forms of tensors that the operators take: rows, dtypes of sums and products, autocast."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, ParamSpec, TypeVar

import numpy as np
import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")

_ALIGNED = 64  # bytes, of the widest vectors and of cache lines

Products = Literal["highest", "high", "medium"]
"""Precisions of float32 products, as ``torch.set_float32_matmul_precision`` names them."""


def fill_missing(x: Tensor, missing: bool = True) -> Tensor:
    """x with 0 in place of NaN, to which no gradient flows; x itself where nothing can be ``missing``."""
    return torch.nan_to_num(x, 0.0, math.inf, -math.inf) if missing else x


def as_rows(x: Tensor) -> Tensor:
    """[*, D] as [M, D] with unit last stride, without a copy where the strides allow."""
    rows = x.reshape(-1, x.shape[-1]) if x.numel() else x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    return rows if rows.stride(-1) == 1 or rows.shape[-1] <= 1 else rows.contiguous()


def reduce_rows(rows: Tensor, reduction: str, leading: torch.Size) -> Tensor:
    """Values per row [M], reduced by ``"mean"`` or ``"sum"``, or (``"none"``) in the shape ``leading``."""
    if reduction == "none":
        return rows.view(leading)
    return rows.mean() if reduction == "mean" else rows.sum()


def is_split(tensor: Tensor) -> bool:
    """True if processes hold parts of a tensor: it is a ``DTensor``."""
    return hasattr(tensor, "to_local")


def local(tensor: Tensor) -> Tensor:
    """This process's part of a tensor, or all of it where it is not split."""
    return tensor.to_local() if is_split(tensor) else tensor  # pyright: ignore[reportAttributeAccessIssue]


def is_finite(tensor: Tensor) -> bool:
    """True if no entry is NaN or infinite; on a CPU many times faster than ``torch.isfinite``."""
    return not tensor.numel() or bool(torch.stack(tensor.aminmax()).isfinite().all())


def sum_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype that sums over values of ``dtype`` are kept in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def large_empty(*shape: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """An uninitialised tensor; on a CPU in huge pages where Linux has them.

    NumPy asks for them and PyTorch does not; without, the first write takes several times as long.
    """
    if device.type != "cpu":
        return torch.empty(shape, dtype=dtype, device=device)
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + _ALIGNED, np.uint8)
    start = -memory.ctypes.data % _ALIGNED
    return torch.from_numpy(memory[start : start + size]).view(dtype).view(shape)


def autocast_enabled(device: str) -> bool:
    """True if autocast is on for a type of device."""
    return device != "meta" and torch.is_autocast_enabled(device)


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """The dtype of a linear layer's product of ``x`` under autocast; ``None`` where that leaves it alone."""
    device = x.device.type
    if not autocast_enabled(device) or x.dtype == torch.float64:
        return None
    return torch.get_autocast_dtype(device)


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


def float32_products(device: str) -> Products:
    """The precision of float32 products on a type of device, as ``set_float32_matmul_precision`` names it.

    PyTorch's own getter raises where the newer settings differ from each other.
    """
    cuda, cpu = _product_settings()
    names: dict[str, Products] = {"tf32": "high", "bf16": "medium"}
    return names.get((cpu if device == "cpu" else cuda).fp32_precision, "highest")


@contextmanager
def float32_products_of(precision: Products) -> Iterator[None]:
    """A precision of float32 products within a block, on every device; the settings before come back."""
    settings = _product_settings()
    before = [setting.fp32_precision for setting in settings]
    try:
        common = torch.get_float32_matmul_precision()
    except RuntimeError:  # the devices have settings of their own
        common = None
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        if common is not None:
            torch.set_float32_matmul_precision(common)
        for setting, value in zip(settings, before, strict=True):
            setting.fp32_precision = value


def _product_settings() -> tuple[Any, Any]:
    """Where PyTorch keeps the precision of float32 products: on CUDA, on a CPU."""
    mkldnn: Any = torch.backends.mkldnn
    return torch.backends.cuda.matmul, mkldnn.matmul


def normalize_rows_(weight: Tensor) -> None:
    """Scale the rows of a matrix to norm 1; rows of zeros stay."""
    norms = torch.linalg.vector_norm(weight, dim=1, keepdim=True)
    weight.div_(norms.where(norms > 0, 1.0))


def project_rows_(gradient: Tensor, weight: Tensor) -> None:
    """Remove from each row of a gradient its part along the weight's row."""
    along = torch.linalg.vecdot(gradient, weight) / torch.linalg.vecdot(weight, weight)
    gradient.addcmul_(weight, torch.where(along.isfinite(), along, 0.0)[:, None], value=-1.0)
