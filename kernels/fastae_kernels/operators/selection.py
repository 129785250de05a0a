"""Selection of a sparse code's entries on Triton kernels: plans and launches, without autograd."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from ..device import selection
from . import buffers, run

MOST = 2048
"""The largest number of entries per row that a program can sort."""

_SLOTS = 512  # per row, at least
_SLOTS_OF_ALL = 1 << 24  # rows are worked on in blocks of so many slots
_PRODUCT = 1 << 26  # entries of a library's product
_TILE = 256  # columns: later rounds end at multiples of it


def layout(k: int) -> tuple[int, int]:
    """The number of entries kept per row, a power of two, and of slots."""
    keep = max(16, 1 << (k - 1).bit_length())
    return keep, max(2 * keep, min(8 * keep, 4096), _SLOTS)


def rounds(latents: int, keep: int, slots: int, most: int | None = None) -> Iterator[slice]:
    """The columns of each product, at most ``most`` of them.

    The first fill the slots. Among columns in random order the next c of them hold c / n times as many of a
    row's largest entries as the n before: with the rounds' growth the free slots are half used.
    """
    start, width = 0, slots - keep
    while start < latents:
        width = width if most is None else max(1, min(width, most))
        stop = min(start + width, latents)
        yield slice(start, stop)
        start, width = stop, stop * (slots - keep) // (2 * keep)
        width = max(width // _TILE * _TILE, min(width, slots - keep), 1)


def top_entries(x: Tensor, weight: Tensor, bias: Tensor | None, k: int) -> tuple[Tensor, Tensor]:
    """(values float32, latents int64), [M, k] each: the k largest entries per row of x W^T + b, high to low.

    x [M, D], weight [H, D], k at most H and :data:`MOST`. Ties go to the lower latent, NaN counts as the
    largest value. The product is not written, except where float32 runs by the library: then in parts.
    """
    M, H = len(x), len(weight)
    values, latents = buffers.empty_float(x, M, k), torch.empty(M, k, dtype=torch.int64, device=x.device)
    keep, slots = layout(k)
    height = max(1, _SLOTS_OF_ALL // slots)
    for low in range(0, M, height):
        rows = slice(low, min(low + height, M))
        _top_entries(x[rows], weight, buffers.vector(bias), k, keep, slots, values[rows], latents[rows], H)
    return values, latents


def _top_entries(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    k: int,
    keep: int,
    slots: int,
    values: Tensor,
    latents: Tensor,
    H: int,
) -> None:
    M, D = x.shape
    keys = torch.empty(M, slots, dtype=torch.int64, device=x.device)
    keys[:, :keep] = selection.EMPTY.value
    count = torch.full((M,), keep, dtype=torch.int32, device=x.device)
    plan = run.plan_of("top_entries", x, weight.t(), heavy=True)
    if x.element_size() < 4:  # a library would round z, and what is nearly equal would become equal
        plan = replace(plan, strategy="fused")
    split = plan.strategy == "split"
    warps = min(16, max(1, slots // 256))
    for columns in rounds(H, keep, slots, _PRODUCT // max(M, 1) if split else None):
        w, b = weight[columns], None if bias is None else bias[columns]
        out = buffers.empty_float(x, M, len(w)) if split else keys  # written by the library alone
        args = selection.Candidates(b, keys, count, slots, k, columns.start)
        run.product(x, w.t(), selection.append, args, plan, out)
        last = columns.stop == H
        results = (values, latents) if last else (None, None)
        arguments = keys, count, x, w, b, *results, *x.stride(), *w.stride(), D, len(w), columns.start
        options = {"K": k, "KEEP": keep, "SLOTS": slots, "BN": 16, "BD": 32 * warps}
        run.launch(selection.keep_largest, M, x.device, *arguments, **options, num_warps=warps)
