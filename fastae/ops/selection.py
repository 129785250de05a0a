"""Selection of the entries of a code, without the [N, H] matrix they are chosen from.

A tile of pre-activations z = x W^T + b is computed, compared with a bound that the entries to keep are known
to reach, and overwritten by the next one. The maxima of every eight neighbours are compared first, so that a
tile costs little more than its product. Results are exact for every input: NaN counts as the largest value,
and ties go to the lower row, then to the lower latent.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..tensors import outside_autocast, sum_dtype

_TILE = 1 << 22  # entries: larger tiles make better products, smaller ones stay closer to the cache
_TILE_ROWS = 1024
_EIGHT = 8
_GROUPS = 4  # of eight, whose maximum bounds a row's largest entries


class Tile(NamedTuple):
    """Pre-activations of some rows and latents."""

    rows: slice
    first: int  # latent
    z: Tensor  # [n, w], overwritten by the next tile
    eights: Tensor  # [n, ceil(w / 8), 8]: z, filled up with -inf
    peaks: Tensor  # [n, ceil(w / 8)]: the maxima of eights


class Hits(NamedTuple):
    """Entries found in a tile, by row and then by column."""

    values: Tensor  # [E]
    rows: Tensor  # [E]
    latents: Tensor  # [E]


def tiles(
    x: Tensor, weight: Tensor, bias: Tensor | None, subset: Tensor | None = None, least: int = 1
) -> Iterator[Tile]:
    """The tiles of x W^T + b, in the dtype of sums: all columns of some rows, then the next rows.

    Args:
        x: [N, D].
        weight, bias: [H, D] and [H].
        subset: the latents [L] that count, rising; all of them by default. Columns then go by place in it.
        least: columns of the first tile of a row, at the least.
    """
    wide = sum_dtype(x.dtype)
    columns = len(weight) if subset is None else len(subset)
    height = max(1, min(len(x), _TILE_ROWS))
    width = min(max(_TILE // height, least), columns)
    buffer = torch.empty(height * (width + _EIGHT), dtype=wide, device=x.device)
    for low in range(0, len(x), height):
        rows = slice(low, min(low + height, len(x)))
        block = x[rows].to(wide)
        n = len(block)
        for first in range(0, columns, width):
            part = slice(first, min(first + width, columns))
            kept = part if subset is None else subset[part]
            w = weight[kept].to(wide).t()
            padded = -(-w.shape[1] // _EIGHT) * _EIGHT
            z = buffer[: n * padded].view(n, padded)
            z[:, w.shape[1] :] = -torch.inf
            out = z[:, : w.shape[1]]
            if bias is None:
                torch.mm(block, w, out=out)
            else:
                torch.addmm(bias[kept].to(wide), block, w, out=out)
            yield Tile(rows, first, out, z.view(n, -1, _EIGHT), F.max_pool1d(z, _EIGHT))


def reaching(tile: Tile, bound: Tensor, *, strictly: bool = False) -> tuple[Tensor, ...]:
    """(row, column, value) of the entries of a tile that reach (or exceed) ``bound``, or are NaN.

    In order of rows, then of columns. ``bound`` is a scalar, or of shape [n, 1] or [w].
    """
    below = torch.le if strictly else torch.lt
    columns = tile.z.shape[1]
    least = bound
    if bound.dim() == 1:
        bound = F.pad(bound, (0, -columns % _EIGHT)).view(-1, _EIGHT)
        least = bound.amin(1)
    row, eight = below(tile.peaks, least).logical_not_().nonzero(as_tuple=True)
    values = tile.eights[row, eight]
    if bound.dim():
        bound = bound[row] if bound.shape[1] == 1 else bound[eight]
    hit, place = below(values, bound).logical_not_().nonzero(as_tuple=True)
    row, column, value = row[hit], eight[hit] * _EIGHT + place, values[hit, place]
    if columns % _EIGHT:
        inside = column < columns
        row, column, value = row[inside], column[inside], value[inside]
    return row, column, value


def _maxima(tile: Tile, number: int) -> Tensor:
    """Maxima [n, G] of groups of a tile's entries, at least ``number`` per row; else the entries."""
    groups = tile.peaks.shape[1]
    if groups < number:
        return tile.z
    together = max(1, min(_GROUPS, groups // number))
    return tile.peaks[:, : groups // together * together].view(len(tile.z), together, -1).amax(1)


def row_bound(tile: Tile, k: int) -> Tensor:
    """A lower bound [n, 1] of the k-th largest entry per row: that of the maxima of k groups or more."""
    return _maxima(tile, k).topk(k, dim=1).values[:, -1:]


@outside_autocast
def top_entries(
    x: Tensor, weight: Tensor, bias: Tensor | None, k: int, subset: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    device = x.device
    values = torch.empty(len(x), k, dtype=sum_dtype(x.dtype), device=device)
    latents = torch.empty(len(x), k, dtype=torch.int64, device=device)
    best = place = values  # bound by the first tile of each row
    for tile in tiles(x, weight, bias, subset, k):
        rows, first, z = tile[:3]
        fresh = first == 0
        row, column, value = reaching(tile, row_bound(tile, k) if fresh else best[:, -1:])
        counts = torch.bincount(row, minlength=len(z))
        slot = torch.arange(len(row), device=device) - (counts.cumsum(0) - counts)[row]
        # those kept before come first, and the rest by column: a stable sort breaks ties by latent
        kept = 0 if fresh else k
        width = kept + (int(counts.max()) if len(row) else 0)
        candidates = torch.full((len(z), width), -torch.inf, dtype=z.dtype, device=device)
        places = torch.zeros(len(z), width, dtype=torch.int64, device=device)
        if not fresh:
            candidates[:, :k], places[:, :k] = best, place
        candidates[row, slot + kept] = value
        places[row, slot + kept] = column + first
        ordered, order = candidates.sort(dim=1, descending=True, stable=True)
        best, place = ordered[:, :k], places.gather(1, order[:, :k])
        values[rows], latents[rows] = best, place
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
                self._bound = maxima.flatten().topk(self.number).values[-1].clamp_min_(0.0)
        # a bound of 0 is passed by positive entries only
        row, column, value = reaching(tile, self._bound, strictly=not self._bound > 0.0)
        self._hits.append(Hits(value, row + (tile.rows.start + first_row), column + tile.first))
        self._held += len(value)
        if self._held > 2 * self.number:
            self._cut()

    def _cut(self) -> None:
        """Drop what is certainly too small; where ties are too many to hold, what comes after them too."""
        hits = Hits(*(torch.cat(parts) for parts in zip(*self._hits, strict=True)))
        self._bound = hits.values.topk(self.number).values[-1]
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
        for tile in tiles(x, weight, bias):
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
