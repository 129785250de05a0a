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


if COMPILED.value:
    numbers = core.builtin(_numbers)
    filled = core.builtin(_filled)
    alike = core.builtin(_alike)
else:

    def numbers(rows: Any, columns: Any, axis: Any, like: Any) -> Any:
        """The numbers of the rows (axis 0) or columns (axis 1) of a tile, in the layout of ``like``."""
        return tl.arange(0, (rows, columns)[axis])

    def filled(like: Any, value: Any, dtype: Any) -> Any:
        """``value`` in every entry of a tensor as large as ``like``."""
        return tl.full(like.shape, value, dtype)

    def alike(tensor: Any, like: Any) -> Any:
        """``tensor`` in the layout of ``like``."""
        return tensor
