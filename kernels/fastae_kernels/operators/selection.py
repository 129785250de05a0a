"""Selection of a sparse code's entries on Triton kernels: plans and launches, without autograd."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..device import selection
from ..plan.schedules import Plan
from . import buffers, run

MOST = 2048
"""The largest number of entries per row that a program can sort."""

_SLOTS = 512  # per row, at least
_SLOTS_OF_ALL = 1 << 24  # rows are worked on in blocks of so many slots
_PRODUCT = 1 << 26  # entries of a library's product
_FLAT = 1 << 20  # slots of a list for all rows, at least
_PLACES = (1 << 31) - 1  # of entries in a list
_SAMPLE = 64  # rows whose entries tell how many there will be
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
    start, width = 0, slots
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


def _plan(operator: str, x: Tensor, weight: Tensor) -> Plan:
    plan = run.plan_of(operator, x, weight.t())
    if x.element_size() < 4:  # not of a rounded z, in which what is nearly equal would be equal
        plan = replace(plan, strategy="fused")
    return plan


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
    bound = torch.full((M,), selection.EMPTY.value >> 32, dtype=torch.int32, device=x.device)
    count = torch.zeros_like(bound)
    plan = _plan("top_entries", x, weight)
    split = plan.strategy == "split"
    warps = min(16, max(1, slots // 256))
    for columns in rounds(H, keep, slots, _PRODUCT // max(M, 1) if split else None):
        w, b = weight[columns], None if bias is None else bias[columns]
        out = buffers.empty_float(x, M, len(w)) if split else keys  # written by the library alone
        args = selection.Candidates(b, bound, keys, count, slots, columns.start)
        run.product(x, w.t(), selection.append, args, plan, out, exact=True)
        last = columns.stop == H
        results = (values, latents) if last else (None, None)
        arguments = keys, bound, count, x, w, b, *results, *x.stride(), *w.stride(), D, len(w), columns.start
        options = {"K": k, "KEEP": keep, "SLOTS": slots, "BN": 16, "BD": 32 * warps}
        run.launch(selection.keep_largest, M, x.device, *arguments, **options, num_warps=warps)


# --- entries of all rows ------------------------------------------------------------------------------------


def append_passing(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    bound: Tensor,
    keys: Tensor,
    count: Tensor,
    first: int = 0,
) -> None:
    """Append the entries of x W^T + b above ``bound`` (one value, or [H]) to ``keys`` from slot ``count`` on.

    As many as fit, in any order, but ``count`` goes on. A key holds the value's rank and the entry's place in
    the flattened [M, H], after ``first``; all places are below 2^31.
    """
    plan = _plan("append_passing", x, weight)
    stride = 1 if bound.numel() > 1 else 0
    split = plan.strategy == "split"
    height = max(1, _PRODUCT // len(weight) if split else len(x))
    for low in range(0, len(x), height):
        rows, place = x[low : low + height], first + low * len(weight)
        # written by the library alone
        out = buffers.empty_float(x, len(rows), len(weight)) if split else keys
        args = selection.Passing(buffers.vector(bias), bound, stride, keys, count, len(keys), place)
        run.product(rows, weight.t(), selection.append_passing, args, plan, out, exact=True)


def _ranks(keys: Tensor) -> Tensor:
    return (keys >> 32).to(torch.int32)


def _values(ranks: Tensor) -> Tensor:
    return (ranks ^ ((ranks >> 31) & 0x7FFFFFFF)).view(torch.float32)


def flat_capacity(latents: int, number: int) -> int:
    """The slots of a list that keeps ``number`` entries: one row at least finds place beside them."""
    return max(8 * number, number + latents, _FLAT)


def height_after(rows: int, latents: int, number: int, capacity: int) -> int:
    """The rows of the round after so many.

    At first as many as certainly fit, then so that the free slots are half used by rows in random order.
    """
    free = capacity - number
    return max(1, free // latents, rows * free // (2 * number))


def batch_entries(
    x: Tensor, weight: Tensor, bias: Tensor | None, number: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The ``number`` largest relu(x W^T + b) of all rows: values and latents [number], offsets [M + 1].

    In order of rows and latents. Ties go to the lower row, then to the lower latent; NaN counts as the
    largest value. Where fewer are positive, the last row is filled up with entries of value 0. ``number``
    plus the latents is below 2^31.

    Rows come in rounds of growing height. What is above the least kept value is appended to a list, and the
    library cuts that. Equal values of later rows stay behind.
    """
    M, H, device = len(x), len(weight), x.device
    capacity = flat_capacity(H, number)
    keys = torch.empty(capacity, dtype=torch.int64, device=device)
    kept = torch.zeros(max(number, 1), dtype=torch.int64, device=device)  # places in z, as keys are ordered
    bound = torch.zeros(1, device=device)
    held, start, most = 0, 0, (_PLACES - number) // H
    height = height_after(0, H, number, capacity) if number else 0
    while start < M and number:
        stop = min(start + min(height, most), M)
        count = torch.full((), held, dtype=torch.int32, device=device)
        append_passing(x[start:stop], weight, bias, bound, keys, count, number)
        used = int(count)
        if used > capacity:  # once more with fewer rows
            height = max(height_after(0, H, number, capacity), (stop - start) // 4)
            continue
        best = keys[:used].topk(min(number, used)).values
        held, place = len(best), _PLACES - (best & 0xFFFFFFFF)
        before = kept[place.clamp_max(number - 1)]
        kept[:held] = torch.where(place < number, before, start * H + place - number)
        keys[:held] = (best >> 32 << 32) | (_PLACES - torch.arange(held, device=device))
        if held == number:
            bound = _values(_ranks(best[-1:]))
        start, height = stop, height_after(stop, H, number, capacity)
    places, order = kept[:held].sort()
    values = _values(_ranks(keys[:held][order]))
    offsets = torch.searchsorted(places, torch.arange(M + 1, device=device) * H)
    missing = number - held
    offsets[-1] += missing
    return F.pad(values, (0, missing)), F.pad(places % H, (0, missing)), offsets


def entries_above(
    x: Tensor, weight: Tensor, bias: Tensor | None, bound: Tensor, most: int | None = None
) -> tuple[Tensor, Tensor, Tensor] | None:
    """The entries of x W^T + b above ``bound`` (a scalar or [H]), or NaN.

    Values and latents [E], in order of rows and latents, and offsets [M + 1]. ``None`` where there are more
    than ``most``, or would be by a sample of rows. H is below 2^31.
    """
    M, H, device = len(x), len(weight), x.device
    bound = bound.contiguous().view(-1)

    def append(rows: Tensor, capacity: int) -> tuple[Tensor, int]:
        keys = torch.empty(capacity, dtype=torch.int64, device=device)
        count = torch.zeros((), dtype=torch.int32, device=device)
        append_passing(rows, weight, bias, bound, keys, count)
        return keys, int(count)

    sample = x[:: max(1, M // _SAMPLE)]
    per_row = append(sample, 0)[1] / max(len(sample), 1)
    if most is not None and per_row * M > 2 * most:
        return None
    ranks: list[Tensor] = [torch.empty(0, dtype=torch.int32, device=device)]
    places: list[Tensor] = [torch.empty(0, dtype=torch.int64, device=device)]
    held, height = 0, max(1, _PLACES // H)
    for low in range(0, M, height):
        rows = x[low : low + height]
        keys, used = append(rows, min(int(1.25 * per_row * len(rows)) + _FLAT, len(rows) * H))
        held += used
        if most is not None and held > most:
            return None
        if used > len(keys):
            keys, used = append(rows, used)
        ordered, order = (keys[:used] & 0x7FFFFFFF).to(torch.int32).sort(descending=True)
        ranks.append(_ranks(keys[:used][order]))
        places.append(low * H + (_PLACES - ordered.long()))
    place = torch.cat(places)
    offsets = torch.searchsorted(place, torch.arange(M + 1, device=device) * H)
    return _values(torch.cat(ranks)), place % H, offsets
