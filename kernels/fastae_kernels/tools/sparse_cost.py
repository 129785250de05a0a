"""Bytes moved and operations of the kernels of sparse codes, counted as :mod:`.cost` counts.

Gathered rows are read once per entry, as if no cache held them.
"""

from __future__ import annotations

from ..operators.selection import layout, rounds
from ..plan.roofline import Cost, product


def top_entries(M: int, D: int, H: int, e: int, k: int) -> Cost:
    """Selection without a written product: x is read by every round, and each row's keys beside it."""
    keep, slots = layout(k)
    total = Cost(12 * M * k)  # values and latents
    for columns in rounds(H, keep, slots):
        width = columns.stop - columns.start
        found = width if not columns.start else keep * width // columns.start  # among columns in any order
        keys = 8 * (1 + found) + 8 * (2 * keep + found) + 4 * 4  # bounds, candidates; sorting; counters
        bare = product(M, width, D, e)
        total += Cost(bare.bytes - e * M * width + e * width + M * keys, bare.flops)
    return total


def segment_sums(entries: int, segments: int, D: int, e: int, *, dots: bool = False) -> Cost:
    """A table's row read per entry and a row written per segment; with ``dots``, one more is read there."""
    each = e * D + 4 + 8 + dots * (8 + 4)
    return Cost(entries * each + segments * (e * D + 8 + dots * e * D), 2 * entries * D * (1 + dots))


def step(M: int, D: int, H: int, e: int, k: int) -> dict[str, Cost]:
    """The kernels of one forward and backward pass of topk, without passes over [M, D]."""
    entries = M * k
    return {
        "top_entries": top_entries(M, D, H, e, k),
        "sort by latent": Cost(4 * 2 * 16 * entries),  # four passes over keys and places
        "decode": segment_sums(entries, M, D, e),
        "decode_grad": segment_sums(entries, H, D, e, dots=True),
        "encode_grad": segment_sums(entries, H, D, e),
    }
