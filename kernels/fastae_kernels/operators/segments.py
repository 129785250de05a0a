"""Sums over the entries of sparse codes on Triton kernels: plans and launches, without autograd."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..device import segments
from . import run

WIDEST_ROW = 8192
"""The widest rows that a program of :func:`segment_sums` and of :func:`adam_rows` can hold."""

_CHUNK = 128  # entries that one program takes of a segment


class _Chunks(NamedTuple):
    """The further chunks of segments with more than ``_CHUNK`` entries, in order of segments."""

    number: int  # at least as many as there are, without asking the device
    segment: Tensor  # [number]; the number of segments for a chunk that is not needed
    place: Tensor  # [number], within the segment, from 1 on
    ends: Tensor  # [segments]: the chunks of this segment and of those before it


def _chunks(starts: Tensor, entries: int) -> _Chunks:
    segments, number = len(starts) - 1, entries // _CHUNK
    further = (starts.diff().add(_CHUNK - 1).div(_CHUNK, rounding_mode="floor") - 1).clamp_min(0)
    ends = further.cumsum(0)
    each = torch.arange(number, device=starts.device)
    segment = torch.searchsorted(ends, each, right=True)
    owner = segment.clamp_max(max(segments - 1, 0))
    return _Chunks(number, segment, each - (ends - further)[owner] + 1 if segments else each, ends)


def _options(width: int, per_warp: int = 512, rows: int = 4) -> dict[str, int]:
    """One program holds a row, and reads up to ``rows`` rows of a table at once.

    A warp has ``per_warp`` columns: with 512 the loss would spill, with 256 products with another table.
    """
    block = max(16, 1 << (width - 1).bit_length())
    rows, warps = max(1, min(rows, 16384 // block)), min(16, max(1, block // per_warp))
    return {"BD": block, "B": rows, "num_warps": warps}


def segment_sums(
    table: Tensor,
    index: Tensor,
    starts: Tensor,
    values: Tensor | None = None,
    other: Tensor | None = None,
    place: Tensor | None = None,
) -> tuple[Tensor | None, Tensor | None]:
    """The sums of values [E] times rows of a table [R, D] by segments, [S, D], in the table's dtype.

    Segment s holds the entries starts[s] to starts[s + 1]; entry i takes row index[i] (int64). With ``other``
    [S, D], also the products of each entry's row with that of its segment, [E] in float32, at ``place``.
    D is at most :data:`WIDEST_ROW`, and the tables are contiguous.
    """
    number, width, chunks = len(starts) - 1, table.shape[1], _chunks(starts, len(index))
    sums = None if values is None else table.new_empty(number, width)
    products = None if other is None else table.new_empty(len(index), dtype=torch.float32)
    dots = segments.Dots() if other is None else segments.Dots(other, place, products)
    partials = None if values is None else table.new_empty(chunks.number, width, dtype=torch.float32)
    entries, options = segments.Entries(values, index, starts, table), _options(width)
    arguments = entries, dots, chunks.segment, chunks.place, sums, partials, 0, number, width
    programs = number + chunks.number
    run.launch(segments.segment_sums, programs, table.device, *arguments, CHUNK=_CHUNK, **options)
    if sums is not None:
        arguments = chunks.segment, partials, sums, number, chunks.number, width
        whole = {name: options[name] for name in ("BD", "num_warps")}
        run.launch(segments.fold_chunks, chunks.number, table.device, *arguments, **whole)
    return sums, products


def segment_loss(
    table: Tensor,
    index: Tensor,
    starts: Tensor,
    values: Tensor,
    target: Tensor,
    bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(loss [S] float32, its gradient per segment with respect to the sum, [S, D] in the table's dtype).

    The squared error of the sums of :func:`segment_sums`, plus ``bias`` [D], against ``target`` [S, D], which
    is contiguous, too; the sums are never written. One program takes a segment, however long.
    """
    number, width = len(starts) - 1, table.shape[1]
    losses = table.new_empty(number, dtype=torch.float32)
    grad = table.new_empty(number, width)
    arguments = segments.Entries(values, index, starts, table), bias, target, losses, grad, width
    run.launch(segments.segment_loss, number, table.device, *arguments, **_options(width, 256))
    return losses, grad


def adam_rows(
    parameter: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    rates: Tensor,
    betas: tuple[float, float],
    eps: float,
    entries: tuple[Tensor, Tensor, Tensor, Tensor] | None = None,
    gradient: Tensor | None = None,
    unit: bool = False,
) -> None:
    """A step of Adam on a matrix [H, D], in place, whose gradient is never written.

    The gradient is that of ``entries`` (table [N, D], index, starts [H + 1] and values, as for
    :func:`segment_sums`), plus ``gradient`` [H, D]. ``rates`` [2], float32, holds lr / (1 - beta1^t) and
    sqrt(1 - beta2^t). With ``unit`` the gradient's part along each row is left out, and rows end with norm 1.
    All matrices are contiguous, and D is at most :data:`WIDEST_ROW`.
    """
    H, D = parameter.shape
    own, partials, ends = segments.Entries(), None, None
    if entries is not None:
        table, index, starts, values = entries
        own, chunks = segments.Entries(values, index, starts, table), _chunks(starts, len(index))
        partials, ends = table.new_empty(chunks.number, D, dtype=torch.float32), chunks.ends
        arguments = own, segments.Dots(), chunks.segment, chunks.place, None, partials, H, H, D
        run.launch(
            segments.segment_sums, chunks.number, table.device, *arguments, CHUNK=_CHUNK, **_options(D)
        )
    numbers = 1.0 - betas[0], betas[1], 1.0 - betas[1], eps
    step = segments.Adam(parameter, exp_avg, exp_avg_sq, rates, *numbers)
    arguments = own, ends, partials, gradient, step, D
    options: dict[str, Any] = {"UNIT": unit, "CHUNK": _CHUNK, **_options(D, rows=2)}
    # with two rows of the table at once, two programs of 4096 columns fit a multiprocessor
    run.launch(segments.adam_rows, H, parameter.device, *arguments, **options)
