"""Bytes moved and operations of the kernels of sparse codes, counted as :mod:`.cost` counts.

    python -m fastae_kernels.tools.sparse_cost

prints the least times of a step at three shapes. Gathered rows are read once per entry, as if no cache held
them.
"""

from __future__ import annotations

from ..operators.selection import flat_capacity, height_after, layout, rounds
from ..plan.roofline import Cost, product

CARDS = {"H200": (4.3e12, 780e12), "H100": (3.0e12, 700e12)}
"""Bytes and 16-bit operations per second that large copies and products reach, not the data sheet's."""

SHAPES = ((8192, 4096, 131_072, 64), (4096, 2304, 16_384, 32), (8192, 2048, 1_048_576, 64))
"""Rows, features, latents and entries per row."""


def _sort(entries: int) -> Cost:
    """Four passes over keys and places of 4 or 8 bytes, each read and written."""
    return Cost(4 * 2 * 16 * entries)


def _selecting(M: int, N: int, D: int, e: int) -> Cost:
    """A product whose result is not written, but a bias read."""
    bare = product(M, N, D, e)
    return Cost(bare.bytes - e * M * N + e * N, bare.flops)


def top_entries(M: int, D: int, H: int, e: int, k: int) -> Cost:
    """Selection without a written product: x is read by every round, and each row's keys beside it."""
    keep, slots = layout(k)
    total = Cost(12 * M * k)  # values and latents
    for columns in rounds(H, keep, slots):
        width = columns.stop - columns.start
        found = width if not columns.start else keep * width // columns.start  # among columns in any order
        keys = 8 * (1 + found) + 8 * (2 * keep + found) + 4 * 4  # bounds, candidates; sorting; counters
        total += _selecting(M, width, D, e) + Cost(M * keys)
    return total


def batch_entries(M: int, D: int, H: int, e: int, number: int) -> Cost:
    """The weight is read by every round of rows; the library's cut reads the list four times."""
    capacity, total, start = flat_capacity(H, number), _sort(number) + Cost(12 * number), 0
    while start < M:
        stop = min(M, start + height_after(start, H, number, capacity))
        found = (stop - start) * H // 2 if not start else number * (stop - start) // start
        keys = 8 * found + 4 * 8 * (number + found) + 3 * 8 * number
        total += _selecting(stop - start, H, D, e) + Cost(keys)
        start = stop
    return total


def entries_above(M: int, D: int, H: int, e: int, entries: int) -> Cost:
    """The entries' keys are written, sorted by place, and taken apart."""
    return _selecting(M, H, D, e) + Cost(8 * entries + (8 + 4 + 12) * entries) + _sort(entries)


def segment_sums(
    entries: int, segments: int, D: int, e: int, *, sums: bool = True, dots: bool = False
) -> Cost:
    """A table's row read per entry and a row written per segment; with ``dots``, one more is read there."""
    each = e * D + 4 * sums + 8 + dots * (8 + 4)
    return Cost(entries * each + segments * ((sums + dots) * e * D + 8), 2 * entries * D * (sums + dots))


def segment_loss(entries: int, segments: int, D: int, e: int) -> Cost:
    """As the sums, with a row of targets read per segment, and a number written."""
    return segment_sums(entries, segments, D, e) + Cost(segments * (e * D + 4) + e * D)


def adam_rows(entries: int, H: int, D: int, e: int) -> Cost:
    """A table's row read per entry; weight and moments in float32 read and written, and no gradient."""
    return Cost(entries * (e * D + 4 + 8) + H * (6 * 4 * D + 8), 2 * entries * D)


def step(M: int, D: int, H: int, e: int, k: int) -> dict[str, Cost]:
    """The kernels of one forward and backward pass of topk, without passes over [M, D]."""
    entries = M * k
    return {
        "top_entries": top_entries(M, D, H, e, k),
        "sort by latent": _sort(entries),
        "decode": segment_loss(entries, M, D, e),
        "decode_grad": segment_sums(entries, H, D, e, dots=True),
        "encode_grad": segment_sums(entries, H, D, e),
    }


def adam(D: int, H: int) -> Cost:
    """Adam on both weights in float32, with projection and unit rows in passes of their own."""
    return Cost(2 * D * H * (7 * 4 + 12))


def step_by_rows(M: int, D: int, H: int, e: int, k: int) -> dict[str, Cost]:
    """A whole step of topk with :func:`adam_rows` in place of the weights' gradients."""
    parts, entries = step(M, D, H, e, k), M * k
    del parts["encode_grad"]
    parts["decode_grad"] = segment_sums(entries, H, D, e, sums=False, dots=True)
    return parts | {"adam_rows": adam_rows(entries, H, D, e) * 2}


def markdown() -> str:
    """A table of the least milliseconds per shape and card, in bfloat16 with Adam in float32."""
    heads = (
        "rows, features, latents, k", "card", "encoder's product", "selection with it: topk", "batch_topk",
        "decoder and loss", "weight gradients", "forward and backward", "whole step, Adam",
        "with DictionaryAdam",
    )  # fmt: skip
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for (M, D, H, k), (card, peaks) in ((s, c) for s in SHAPES for c in CARDS.items()):
        own = step(M, D, H, 2, k)
        forward = sum(part.seconds(*peaks) for part in own.values())
        times = (
            product(M, H, D, 2).seconds(*peaks),
            own["top_entries"].seconds(*peaks),
            batch_entries(M, D, H, 2, M * k).seconds(*peaks),
            own["decode"].seconds(*peaks),
            own["decode_grad"].seconds(*peaks) + own["encode_grad"].seconds(*peaks),
            forward,
            forward + adam(D, H).seconds(*peaks),
            sum(part.seconds(*peaks) for part in step_by_rows(M, D, H, 2, k).values()),
        )
        cells = (f"{M}, {D}, {H}, {k}", card, *(f"{1e3 * seconds:.3g}" for seconds in times))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(markdown())
