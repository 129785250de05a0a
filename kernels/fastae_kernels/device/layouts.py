"""Tensors that a device function makes out of nothing, in Triton and in Gluon.

Device functions serve kernels of both languages. In Gluon every tensor has a layout, which says which thread
holds which entry. There they are made in the layout of a tensor that the function already has, or brought to
it; in Triton, whose compiler chooses layouts, nothing of that happens.
"""

from __future__ import annotations

from typing import Any

import triton.language as tl
from triton.language import core

from .elementary import COMPILED


def _in_gluon(semantic: Any) -> bool:
    return hasattr(semantic, "convert_layout")


def _given(*arguments: Any) -> list[Any]:
    return [core._unwrap_if_constexpr(argument) for argument in arguments]


def _rows_by_lanes(rows: int, columns: int, warps: int) -> Any:
    """The layout of a tile [rows, columns] with an entry per thread."""
    from triton.experimental.gluon.language import BlockedLayout

    lanes = min(columns, 32)
    return BlockedLayout([1, 1], [32 // lanes, lanes], [warps, 1], [1, 0])


def _numbers(
    rows: Any, columns: Any, axis: Any, like: Any, _semantic: Any = None, _generator: Any = None
) -> Any:
    rows, columns, axis, like = _given(rows, columns, axis, like)
    size = (rows, columns)[axis]
    if not _in_gluon(_semantic):
        return _semantic.arange(0, size)
    from triton.experimental.gluon.language import SliceLayout

    if like is None:
        (warps,) = _given(_semantic.num_warps(_generator))
        layout = _rows_by_lanes(rows, columns, warps)
    else:
        layout = like.type.layout
    return _semantic.arange(0, size, SliceLayout(1 - axis, layout))


def _filled(like: Any, value: Any, dtype: Any, _semantic: Any = None) -> Any:
    layout = [like.type.layout] if _in_gluon(_semantic) else []
    return _semantic.full(like.shape, *_given(value, dtype), *layout)


def _alike(tensor: Any, like: Any, _semantic: Any = None) -> Any:
    return _semantic.convert_layout(tensor, like.type.layout) if _in_gluon(_semantic) else tensor


def _sliced(layout: Any, rank: int, axis: int) -> Any:
    """The layout of a vector along ``axis`` of a tensor."""
    from triton.experimental.gluon.language import SliceLayout

    for other in reversed(range(rank)):
        layout = layout if other == axis else SliceLayout(other, layout)
    return layout


def _stretched(vector: Any, rank: int, axis: int, semantic: Any) -> Any:
    for other in range(rank):
        vector = vector if other == axis else semantic.expand_dims(vector, other)
    return vector


def _indices(like: Any, axis: Any, _semantic: Any = None) -> Any:
    (axis,), rank = _given(axis), len(like.shape)
    layout = [_sliced(like.type.layout, rank, axis)] if _in_gluon(_semantic) else []
    vector = _semantic.arange(0, *_given(like.shape[axis]), *layout)
    return _stretched(vector, rank, axis, _semantic)


def _along(vector: Any, like: Any, axis: Any, _semantic: Any = None) -> Any:
    (axis,), rank = _given(axis), len(like.shape)
    if _in_gluon(_semantic):
        vector = _semantic.convert_layout(vector, _sliced(like.type.layout, rank, axis))
    return _stretched(vector, rank, axis, _semantic)


def _ordered(vector: Any, _semantic: Any = None, _generator: Any = None) -> Any:
    if not _in_gluon(_semantic):
        return vector
    from triton.experimental.gluon.language import BlockedLayout

    (warps,) = _given(_semantic.num_warps(_generator))
    layout = BlockedLayout([max(1, vector.shape[0] // (32 * warps))], [32], [warps], [0])
    return _semantic.convert_layout(vector, layout)


_PAIRS = 16  # of columns that matrix units leave to a thread, as int32 has bits for


def _adjacent(tile: Any, _semantic: Any = None) -> Any:
    return core.constexpr(8 if _in_gluon(_semantic) else 2)


def _octets(tile: Any, _semantic: Any = None) -> Any:
    if _in_gluon(_semantic):
        return core.constexpr(min(tile.type.layout.size_per_thread[1] // 8, 4))
    return core.constexpr(min(_given(tile.shape[1])[0] // 8, _PAIRS))


if COMPILED.value:
    indices = core.builtin(_indices)
    along = core.builtin(_along)
    ordered = core.builtin(_ordered)
    adjacent = core.builtin(_adjacent)
    octets = core.builtin(_octets)
    numbers = core.builtin(_numbers)
    filled = core.builtin(_filled)
    alike = core.builtin(_alike)
else:

    def numbers(rows: Any, columns: Any, axis: Any, like: Any) -> Any:
        """The numbers of the rows (axis 0) or columns (axis 1) of a tile, in the layout of ``like``."""
        return tl.arange(0, (rows, columns)[axis])

    def indices(like: Any, axis: int) -> Any:
        """The indices along ``axis`` of ``like``, of a shape that broadcasts with it."""
        return along(tl.arange(0, like.shape[axis]), like, axis)

    def along(vector: Any, like: Any, axis: int) -> Any:
        """A vector along ``axis`` of ``like``, of a shape and layout that broadcast with it."""
        for other in range(len(like.shape)):
            vector = vector if other == axis else tl.expand_dims(vector, other)
        return vector

    def ordered(vector: Any) -> Any:
        """A vector in a layout that can be scanned."""
        return vector

    def adjacent(tile: Any) -> Any:
        """The columns of an octet that a thread has: a pair of matrix units', or all of them in Gluon."""
        return 2

    def octets(tile: Any) -> Any:
        """The octets of columns, of which a thread's entries have a bit each in an int32."""
        return min(tile.shape[1] // 8, _PAIRS)

    def filled(like: Any, value: Any, dtype: Any) -> Any:
        """``value`` in every entry of a tensor as large as ``like``."""
        return tl.full(like.shape, value, dtype)

    def alike(tensor: Any, like: Any) -> Any:
        """``tensor`` in the layout of ``like``."""
        return tensor
