"""The operators on Triton kernels; float64 goes to PyTorch.

A launcher of :mod:`fastae_kernels.operators` has its operator's parameters, except for those that describe
noise and losses. Imported on first use, since it imports Triton.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, get_type_hints

import torch
from fastae_kernels import operators
from fastae_kernels.device import noise as drawing
from fastae_kernels.operators import segments, selection
from fastae_kernels.replay import replayed
from torch import Tensor

from .. import philox
from ..corruption import Corruption, Event, make_corruption
from ..losses import get_loss
from ..tensors import outside_autocast
from . import torch_impl
from .declaration import DECLARATIONS
from .updates import Entries, rates


def implementation(name: str) -> Callable[..., Any]:
    """The operator ``name`` with its declared parameters, or a function that is none."""
    if name not in DECLARATIONS:
        return outside_autocast(LAUNCHERS[name])
    declaration = DECLARATIONS[name]
    parameters = tuple(inspect.signature(declaration).parameters)
    result = get_type_hints(declaration)["return"]
    launcher, on_pytorch = LAUNCHERS.get(name) or getattr(operators, name), getattr(torch_impl, name)
    of_noise = NOISE.get(name)
    described = () if of_noise is None else tuple(inspect.signature(of_noise).parameters)

    def run(first: Tensor, *given: Any, **options: Any) -> Any:
        if first.dtype not in operators.DTYPES:
            return on_pytorch(first, *given, **options)
        arguments = dict(zip(parameters, (first, *given), strict=False)) | options
        if of_noise is not None:
            arguments |= of_noise(**{name: arguments.pop(name) for name in described if name in arguments})
        results = launcher(**arguments)
        if result is Tensor:
            return results
        named = zip(result._fields, results, strict=True)
        return tuple(_or_empty(field, tensor, first) for field, tensor in named)

    alone = outside_autocast(run)
    return replayed(alone) if name in REPLAYED else alone


def _or_empty(field: str, tensor: Tensor | None, like: Tensor) -> Tensor:
    """A result, or the empty tensor that stands for it: float32 for all but matrices of the input's dtype."""
    if tensor is not None:
        return tensor
    return like.new_empty(0, dtype=like.dtype if field in ("noisy", "preact", "sums") else torch.float32)


# --- noise: what an operator is told, and the arguments of its launcher -------------------------------------


def _mask(seed: Tensor, stream: int, event: Event) -> drawing.Mask:
    return drawing.Mask(seed, stream, event.threshold, drawing.BITS[event.width])


def _dropout(seed: Tensor | None = None, dropout: float = 0.0) -> dict[str, Any]:
    if seed is None or not dropout:
        return {"dropout": None}
    mask = _mask(seed, philox.STREAM_DROPOUT, Event(dropout))
    return {"dropout": mask._replace(keep_scale=philox.keep_scale(dropout))}


def _code_noise(
    seed: Tensor | None = None, noise: str = "none", noise_std: float = 0.0, dropout: float = 0.0
) -> dict[str, Any]:
    drawn = None
    if seed is not None and noise != "none":
        drawn = drawing.Noise(drawing.CODE_NOISES[noise], philox.STREAM_CODE_NOISE, noise_std)
    return {"seed": seed, "noise": drawn, **_dropout(seed, dropout)}


def _decoding(
    loss: str = "mse",
    seed: Tensor | None = None,
    kind: str = "none",
    params: list[float] | None = None,
    corrupted: float = 1.0,
    clean: float = 1.0,
) -> dict[str, Any]:
    """The loss, its number, and the weights of hit and of other entries; probability 0 hits none."""
    formula = {"loss": loss.partition(":")[0], "parameter": get_loss(loss).parameter}
    if seed is None:
        return {**formula, "mask": None, "corrupted": corrupted, "clean": clean}
    event = make_corruption(kind, params or []).event
    assert event is not None
    mask = _mask(seed, philox.STREAM_CORRUPTION, event)
    return {**formula, "mask": mask, "corrupted": corrupted if event.p else clean, "clean": clean}


def _corruption(seed: Tensor, corruption: Corruption, stream: int) -> drawing.Corruption:
    """The kernels' arguments: the event's draws, and the numbers by the names that they have there."""
    fields = drawing.Corruption._fields
    numbers = {name: value for name, value in vars(corruption).items() if name in fields}
    arguments = drawing.Corruption(drawing.CORRUPTIONS[corruption.kind], seed, stream, **numbers)
    event = corruption.event
    if event is None:
        return arguments
    return arguments._replace(
        threshold=event.threshold, bits=drawing.BITS[event.width], salt=event.half, hits=event.hits
    )


NOISE: dict[str, Callable[..., dict[str, Any]]] = {
    "perturb": _code_noise,
    "encode": _code_noise,
    "code_grad": _dropout,
    "decode_loss": _decoding,
    "decode_loss_target_grad": _decoding,
}
"""Functions that turn an operator's parameters of the same names into arguments of its launcher."""


REPLAYED = frozenset(DECLARATIONS) - {"top_entries", "segment_sums", "segment_loss"}
"""Operators whose launches follow from the form of their arguments."""


# --- operators that are no single launch --------------------------------------------------------------------


def _corrupt(
    x: Tensor,
    seed: Tensor,
    kind: str,
    params: list[float],
    stream: int,
    dtype: torch.dtype | None = None,
) -> Tensor:
    corruption = make_corruption(kind, params)
    if corruption.is_identity:
        return x.to(dtype or x.dtype, copy=True, memory_format=torch.contiguous_format)
    return operators.corrupt(x, _corruption(seed, corruption, stream), dtype)


def _corrupt_backward(grad: Tensor, seed: Tensor, kind: str, params: list[float], stream: int) -> Tensor:
    corruption = make_corruption(kind, params)
    event = corruption.event
    if event is None or corruption.is_identity:
        return grad.clone(memory_format=torch.contiguous_format)
    mask = _mask(seed, stream, event)
    if kind == "swap":
        return operators.swap_backward(grad, mask, event.hits)
    return operators.corrupt(grad, drawing.Corruption(drawing.CORRUPTIONS["masking"], *mask[:4]))


def _top_entries(
    x: Tensor, weight: Tensor, bias: Tensor | None, k: int, subset: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    if k > selection.MOST:
        return torch_impl.top_entries(x, weight, bias, k, subset)
    if subset is None:
        return operators.top_entries(x, weight, bias, k)
    values, places = operators.top_entries(x, weight[subset], None if bias is None else bias[subset], k)
    return values, subset[places]


def _batch_entries(
    x: Tensor, weight: Tensor, bias: Tensor | None, number: int
) -> tuple[Tensor, Tensor, Tensor]:
    fits = x.dtype in operators.DTYPES and number + len(weight) < 2**31
    return (operators if fits else torch_impl).batch_entries(x, weight, bias, number)


def _entries_above(
    x: Tensor, weight: Tensor, bias: Tensor | None, bound: Tensor, most: int | None
) -> tuple[Tensor, Tensor, Tensor] | None:
    fits = x.dtype in operators.DTYPES
    return (operators if fits else torch_impl).entries_above(x, weight, bias, bound, most)


def _segment_sums(
    table: Tensor,
    index: Tensor,
    starts: Tensor,
    values: Tensor | None = None,
    other: Tensor | None = None,
    place: Tensor | None = None,
) -> tuple[Tensor | None, Tensor | None]:
    if table.shape[1] > segments.WIDEST_ROW:
        return torch_impl.segment_sums(table, index, starts, values, other, place)
    other = None if other is None else other.to(table.dtype).contiguous()
    return operators.segment_sums(table.contiguous(), index, starts, values, other, place)


def _segment_loss(
    table: Tensor,
    index: Tensor,
    starts: Tensor,
    values: Tensor,
    target: Tensor,
    bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    if table.shape[1] > segments.WIDEST_ROW:
        return torch_impl.segment_loss(table, index, starts, values, target, bias)
    return operators.segment_loss(table.contiguous(), index, starts, values, target.contiguous(), bias)


def _adam_rows(
    parameter: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: Tensor,
    lr: float | Tensor,
    betas: tuple[float, float],
    eps: float,
    entries: Entries | None,
    gradient: Tensor | None,
    unit: bool,
) -> None:
    matrices = [t for t in (parameter, exp_avg, exp_avg_sq, gradient) if t is not None]
    fits = all(t.dim() == 2 and t.is_contiguous() and t.dtype in operators.DTYPES for t in matrices)
    if not fits or parameter.shape[1] > segments.WIDEST_ROW:
        return torch_impl.adam_rows(
            parameter, exp_avg, exp_avg_sq, step, lr, betas, eps, entries, gradient, unit
        )
    pair = rates(step, lr, betas)
    both = torch.stack([torch.as_tensor(rate) for rate in pair]).to(parameter.device, torch.float32)
    if entries is not None:
        table, index, starts, values = entries
        entries = table.contiguous(), index, starts, values
    operators.adam_rows(parameter, exp_avg, exp_avg_sq, both, betas, eps, entries, gradient, unit)


LAUNCHERS: dict[str, Callable[..., Any]] = {
    "corrupt": _corrupt,
    "corrupt_backward": _corrupt_backward,
    "top_entries": _top_entries,
    "batch_entries": _batch_entries,
    "entries_above": _entries_above,
    "segment_sums": _segment_sums,
    "segment_loss": _segment_loss,
    "adam_rows": _adam_rows,
}
