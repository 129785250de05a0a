"""Selection of the entries of a code, without the [N, H] matrix they are chosen from.

A tile of pre-activations z = x W^T + b is computed, compared with a bound that the entries to keep are known
to reach, and overwritten by the next one. The maxima of groups of neighbours are compared first, so that a
tile costs little more than its product. Results are exact for every input: NaN counts as the largest value,
and ties go to the lower row, then to the lower latent.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..tensors import large_empty, outside_autocast, sum_dtype

_TILE = 1 << 22  # entries: larger tiles make better products, smaller ones stay closer to the cache
_TILE_ROWS = 1024
_GROUPS = (32, 16, 8)
"""Sizes, powers of two: large groups are few to compare, small ones bound more entries."""

_HELD = 1 << 18  # hits that are held, at the least, before the largest of each row are sorted out


class Tile(NamedTuple):
    """Pre-activations of some rows and latents."""

    rows: slice
    first: int  # latent
    z: Tensor  # [n, w], overwritten by the next tile
    groups: Tensor  # [n, G, size]: z, filled up with -inf
    peaks: Tensor  # [n, G]: the maxima of groups


class Hits(NamedTuple):
    """Entries found in a tile, by row and then by column."""

    values: Tensor  # [E]
    rows: Tensor  # [E]
    latents: Tensor  # [E]


def tiles(
    x: Tensor, weight: Tensor, bias: Tensor | None, subset: Tensor | None = None, number: int = 1
) -> Iterator[Tile]:
    """The tiles of x W^T + b, in the dtype of sums: all columns of some rows, then the next rows.

    Args:
        x: [N, D].
        weight, bias: [H, D] and [H].
        subset: the latents [L] that count, rising; all of them by default. Columns then go by place in it.
        number: entries per row that will be kept: columns of the first tile of a row, at the least.
    """
    wide = sum_dtype(x.dtype)
    columns = len(weight) if subset is None else len(subset)
    height = max(1, min(len(x), _TILE_ROWS))
    width = min(max(_TILE // height, number), columns)
    group = next((size for size in _GROUPS if width >= size * number), _GROUPS[-1])
    buffer = large_empty(height * (width + group), dtype=wide, device=x.device)
    for low in range(0, len(x), height):
        rows = slice(low, min(low + height, len(x)))
        block = x[rows].to(wide)
        n = len(block)
        for first in range(0, columns, width):
            part = slice(first, min(first + width, columns))
            kept = part if subset is None else subset[part]
            w = weight[kept].to(wide).t()
            padded = -(-w.shape[1] // group) * group
            z = buffer[: n * padded].view(n, padded)
            z[:, w.shape[1] :] = -torch.inf
            out = z[:, : w.shape[1]]
            if bias is None:
                torch.mm(block, w, out=out)
            else:
                torch.addmm(bias[kept].to(wide), block, w, out=out)
            groups = z.view(n, -1, group)
            yield Tile(rows, first, out, groups, groups.amax(2))


def _places(values: Tensor, bound: Tensor, *, strictly: bool) -> Tensor:
    """Places, in the flattened values, of those that reach (or exceed) a bound or are NaN."""
    if values.device.type == "cpu":  # NumPy's loops are vectorised
        below = np.less_equal if strictly else np.less
        return torch.from_numpy(np.flatnonzero(~below(values.numpy(), bound.numpy())))
    below = torch.le if strictly else torch.lt
    return below(values, bound).logical_not_().view(-1).nonzero().view(-1)


def _largest(values: Tensor, k: int) -> Tensor:
    """The k largest values per row of [n, m], the least of them first and the others in any order."""
    first = values.shape[1] - k
    if values.device.type == "cpu":  # NumPy's partition is vectorised
        return torch.from_numpy(np.partition(values.numpy(), first, axis=1)[:, first:])
    return values.topk(k, dim=1).values.flip(1)


def reaching(tile: Tile, bound: Tensor, *, strictly: bool = False) -> tuple[Tensor, ...]:
    """(row, column, value) of the entries of a tile that reach (or exceed) ``bound``, or are NaN.

    In order of rows, then of columns. ``bound`` is a scalar, or of shape [n, 1] or [w].
    """
    columns, (_, groups, size) = tile.z.shape[1], tile.groups.shape
    least = bound
    if bound.dim() == 1:
        bound = F.pad(bound, (0, -columns % size)).view(-1, size)
        least = bound.amin(1)
    # places in flattened tensors: one index per hit
    place = _places(tile.peaks, least, strictly=strictly)
    row = place // groups
    values = tile.groups.view(-1, size).index_select(0, place)  # [hits, size]
    if bound.dim():
        bound = bound.index_select(0, row if bound.shape[1] == 1 else place - row * groups)
    hit = _places(values, bound, strictly=strictly)
    group = hit >> size.bit_length() - 1  # a power of two
    row, value = row.index_select(0, group), values.view(-1).index_select(0, hit)
    column = (place.index_select(0, group) - row * groups - group) * size + hit
    if columns % size:
        inside = column < columns
        row, column, value = row[inside], column[inside], value[inside]
    return row, column, value


def _maxima(tile: Tile, number: int) -> Tensor:
    """Maxima [n, m] of groups of a tile's entries, at least ``number`` per row; else the entries."""
    return tile.peaks if tile.peaks.shape[1] >= number else tile.z


class LargestPerRow:
    """The k largest entries per row of all tiles of some rows; the first one has k columns or more."""

    def __init__(self, rows: int, k: int) -> None:
        self.rows, self.k = rows, k
        self._hits: list[Hits] = []
        self._held = 0
        self._least: Tensor | None = None  # [n, k], the least first: k different entries reach it

    def add(self, tile: Tile) -> None:
        maxima = _maxima(tile, self.k if self._least is None else 0)
        if self._least is not None:
            maxima = torch.cat((maxima, self._least), 1)
        self._least = _largest(maxima, self.k)
        row, column, value = reaching(tile, self._least[:, :1])
        self._hits.append(Hits(value, row, column + tile.first))
        self._held += len(value)
        if self._held > max(_HELD, 2 * self.rows * self.k):
            values, latents = self.result()
            row = torch.arange(self.rows, device=row.device).repeat_interleave(self.k)
            self._hits, self._held = [Hits(values.flatten(), row, latents.flatten())], values.numel()
            self._least = values.flip(1)

    def result(self) -> tuple[Tensor, Tensor]:
        """Values and latents [n, k], high to low, ties by latent."""
        assert self._least is not None
        n, hits = self.rows, self._hits[0]
        if len(self._hits) > 1:
            hits = Hits(*(torch.cat(parts) for parts in zip(*self._hits, strict=True)))
            kept = _places(hits.values, self._least[:, 0].index_select(0, hits.rows), strictly=False)
            kept = kept.index_select(
                0, hits.rows.index_select(0, kept).to(torch.int32).sort(stable=True).indices
            )
            hits = Hits(*(part.index_select(0, kept) for part in hits))
        # side by side, and in order of latents where values tie: a stable sort keeps that order
        device, number = hits.rows.device, len(hits.rows)
        counts = torch.bincount(hits.rows, minlength=n)
        width = int(counts.max()) if number else 0
        candidates = torch.full((n, width), -torch.inf, dtype=hits.values.dtype, device=device)
        latents = torch.zeros(n, width, dtype=torch.int64, device=device)
        starts = torch.arange(n, device=device) * width - (counts.cumsum(0) - counts)
        slot = torch.arange(number, device=device) + starts.index_select(0, hits.rows)
        candidates.view(-1).index_copy_(0, slot, hits.values)
        latents.view(-1).index_copy_(0, slot, hits.latents)
        ordered, order = candidates.sort(dim=1, descending=True, stable=True)
        return ordered[:, : self.k], latents.gather(1, order[:, : self.k])


@outside_autocast
def top_entries(
    x: Tensor, weight: Tensor, bias: Tensor | None, k: int, subset: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    device = x.device
    values = torch.empty(len(x), k, dtype=sum_dtype(x.dtype), device=device)
    latents = torch.empty(len(x), k, dtype=torch.int64, device=device)
    columns, largest = len(weight) if subset is None else len(subset), None
    for tile in tiles(x, weight, bias, subset, k):
        if largest is None:
            largest = LargestPerRow(len(tile.z), k)
        largest.add(tile)
        if tile.first + tile.z.shape[1] == columns:
            values[tile.rows], latents[tile.rows] = largest.result()
            largest = None
    return values, latents if subset is None else subset[latents]


class LargestOfAll:
    """The ``number`` largest positive entries of all tiles that :meth:`add` sees."""

    def __init__(self, number: int) -> None:
        self.number = number
        self._hits: list[Hits] = []
        self._held = 0
        self._bound: Tensor | None = None

    def add(self, tile: Tile, first_row: int = 0) -> None:
        z = tile.z
        if self._bound is None:
            self._bound = z.new_zeros(())
            maxima = _maxima(tile, -(-self.number // len(z)))
            if maxima.numel() >= self.number:
                self._bound = _largest(maxima.reshape(1, -1), self.number)[0, 0].clamp_min_(0.0)
        # a bound of 0 is passed by positive entries only
        row, column, value = reaching(tile, self._bound, strictly=not self._bound > 0.0)
        self._hits.append(Hits(value, row + (tile.rows.start + first_row), column + tile.first))
        self._held += len(value)
        if self._held > 2 * self.number:
            self._cut()

    def _cut(self) -> None:
        """Drop what is certainly too small; where ties are too many to hold, what comes after them too."""
        hits = Hits(*(torch.cat(parts) for parts in zip(*self._hits, strict=True)))
        self._bound = _largest(hits.values[None], self.number)[0, 0]
        reach = ~(hits.values < self._bound)
        hits = Hits(*(part[reach] for part in hits))
        if len(hits.values) > 2 * self.number:
            hits = self._first(hits)
        self._hits, self._held = [hits], len(hits.values)

    def _first(self, hits: Hits) -> Hits:
        """The ``number`` largest, ties by row and then by latent; in order of rows and latents."""
        by_place = (hits.rows * (1 << 32) + hits.latents).argsort()
        by_value = hits.values[by_place].sort(descending=True, stable=True).indices
        kept = by_place[by_value[: self.number].sort().values]
        return Hits(*(part[kept] for part in hits))

    def result(self) -> Hits:
        """The entries in order of rows, then of latents; fewer than ``number`` where fewer are positive."""
        return self._first(Hits(*(torch.cat(parts) for parts in zip(*self._hits, strict=True))))


def batch_entries(
    x: Tensor, weight: Tensor, bias: Tensor | None, number: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The ``number`` largest relu(z) of all rows: values and latents [number], and offsets [N + 1].

    Where fewer are positive, the last row is filled up with entries of value 0.
    """
    largest = LargestOfAll(number)
    if number:
        for tile in tiles(x, weight, bias, number=-(-number // len(x))):
            largest.add(tile)
    hits = largest.result() if number else Hits(*_no_entries(x))
    missing = number - len(hits.values)
    counts = torch.bincount(hits.rows, minlength=len(x))
    offsets = torch.cat((counts.new_zeros(1), counts.cumsum(0)))
    if missing:
        offsets[-1] += missing
        hits = Hits(*(torch.cat((part, part.new_zeros(missing))) for part in hits))
    return hits.values, hits.latents, offsets


def _no_entries(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    none = torch.empty(0, dtype=torch.int64, device=x.device)
    return none.to(sum_dtype(x.dtype)), none, none


def entries_above(
    x: Tensor, weight: Tensor, bias: Tensor | None, bound: Tensor, most: int | None = None
) -> tuple[Tensor, Tensor, Tensor] | None:
    """The entries z > bound (a scalar or [H]): values and latents [E], and offsets [N + 1].

    Returns:
        ``None`` as soon as there are more than ``most`` entries, or would be by the density of those seen.
    """
    hits: list[Hits] = []
    counts: list[Tensor] = []
    held, seen, everything = 0, 0, len(x) * len(weight)
    for tile in tiles(x, weight, bias):
        n, w = tile.z.shape
        part = bound if bound.dim() == 0 else bound[tile.first : tile.first + w]
        part = part.to(tile.z.dtype)
        if most is not None and not hits:
            some = tile.z[:: max(1, n // 64)]  # enough to see that a code is far from sparse
            if int((some > part).sum()) * everything > 2 * most * some.numel():
                return None
        row, column, value = reaching(tile, part, strictly=True)
        hits.append(Hits(value, row + tile.rows.start, column + tile.first))
        counts.append(torch.bincount(hits[-1].rows, minlength=len(x)))
        held, seen = held + len(value), seen + n * w
        if most is not None and max(held, held * everything // max(seen, 1) // 2) > most:
            return None
    if not hits:
        values, latents, _ = _no_entries(x)
        return values, latents, torch.zeros(len(x) + 1, dtype=torch.int64, device=x.device)
    per_tile = torch.stack(counts)  # [tiles, N]
    total = per_tile.sum(0)
    offsets = torch.cat((total.new_zeros(1), total.cumsum(0)))
    values = torch.empty(held, dtype=hits[0].values.dtype, device=x.device)
    latents = torch.empty(held, dtype=torch.int64, device=x.device)
    start = offsets[:-1].clone()
    for found, count in zip(hits, counts, strict=True):
        rank = torch.arange(len(found.rows), device=x.device) - (count.cumsum(0) - count)[found.rows]
        slot = start[found.rows] + rank
        values[slot], latents[slot] = found.values, found.latents
        start += count
    return values, latents, offsets
