"""Corruption, noise on the code and random signs in PyTorch, drawn in blocks of rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .. import philox
from ..corruption import Corruption, Event, Gaussian, SaltAndPepper, make_corruption
from ..tensors import outside_autocast, sum_dtype


def widen(block: Tensor) -> Tensor:
    """The block in its sums' dtype; the block itself where it has that already."""
    return block.to(sum_dtype(block.dtype))


def store(block: Tensor, value: Tensor) -> None:
    if block.data_ptr() != value.data_ptr():
        block.copy_(value)


# --- random numbers -------------------------------------------------------------------------------------


def keep(bits: Tensor, event: Event, like: Tensor) -> Tensor:
    """1 where the event did not happen, else 0, in ``like``'s dtype."""
    if event.p == 0.0:
        return torch.ones(bits.shape, dtype=like.dtype, device=like.device)
    kept = torch.empty(bits.shape, dtype=like.dtype)
    return torch.gt(bits, event.threshold, out=kept).to(like.device)


_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def _select(x: Tensor, bits: Tensor, event: Event, out: Tensor, hits: bool = False) -> None:
    """``out`` = x where the event (p > 0) did not happen (``hits``: where it did), else 0.

    On the floats' bits, so that inf and nan are dropped, too; PyTorch's ``where`` takes eight times as long.
    """
    integer = _INTEGERS[x.element_size()]
    chosen = (np.less_equal if hits else np.greater)(bits.numpy(), event.threshold)
    x, out = x.view(integer), out.view(integer)
    if x.device.type == "cpu":  # half the time of PyTorch's comparison and product
        np.multiply(x.numpy(), chosen, out=out.numpy())
    else:
        torch.mul(x, torch.from_numpy(chosen).to(x.device), out=out)


def bit_blocks(
    x: Tensor, seed: Tensor, stream: int, width: int = 32, *, even: bool = False
) -> Iterator[tuple[slice, Tensor]]:
    """The bits for the entries of x in blocks of rows; ``even`` adds a column to an odd number of them."""
    rows, columns = x.shape
    place = philox.place_of(seed)
    columns += even and columns % 2
    drawn = place.columns + (even and place.columns % 2) if place.columns else columns
    own = slice(place.column, place.column + columns)
    for block, bits in philox.bit_blocks(place.seed, rows, drawn, stream, place.row, width=width):
        yield block, bits[:, own]


def _add_normal(x: Tensor, std: float, seed: Tensor, stream: int) -> Tensor:
    """x plus normal noise, added in the sums' dtype and rounded once."""
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    for block, bits in bit_blocks(x, seed, stream, even=True):
        mean = widen(x[block])
        store(out[block], mean + std * philox.standard_normal(bits)[:, : x.shape[1]].to(mean))
    return out


# --- corruption -----------------------------------------------------------------------------------------


def _masked(x: Tensor, seed: Tensor, corruption: Corruption, stream: int) -> Tensor:
    """x with the entries set to 0 that the event (p > 0) hits."""
    event = corruption.event
    assert event is not None
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    for block, bits in bit_blocks(x, seed, stream, event.width):
        _select(x[block], bits, event, out[block])
    return out


def _gaussian(x: Tensor, seed: Tensor, corruption: Corruption, stream: int) -> Tensor:
    assert isinstance(corruption, Gaussian)
    return _add_normal(x, corruption.std, seed, stream)


def _salted(x: Tensor, seed: Tensor, corruption: Corruption, stream: int) -> Tensor:
    assert isinstance(corruption, SaltAndPepper)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    event = corruption.event
    for block, bits in bit_blocks(x, seed, stream, event.width):
        hit = (bits <= event.threshold).to(x.device)
        salt = (bits > event.half).to(x.device)
        extreme = torch.where(salt, x.new_full((), corruption.high), x.new_full((), corruption.low))
        out[block] = torch.where(hit, extreme, x[block])
    return out


def _swapped(x: Tensor, seed: Tensor, corruption: Corruption, stream: int) -> Tensor:
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    event = corruption.event
    assert event is not None
    for block, bits in bit_blocks(x, seed, stream, event.width):
        hit = (bits <= event.threshold).to(x.device)
        other = x.gather(0, _swap_source(bits, event, x.shape[0]).to(x.device))
        out[block] = torch.where(hit, other, x[block])
    return out


def _swap_source(bits: Tensor, event: Event, rows: int) -> Tensor:
    """The row each entry is swapped for: given a hit the draw is uniform, and its place picks the row."""
    return ((bits.to(torch.int64) + 2**31) * rows // event.hits).clamp_max_(rows - 1)


def _unchanged(grad: Tensor, seed: Tensor, corruption: Corruption, stream: int) -> Tensor:
    return grad.clone(memory_format=torch.contiguous_format)


def _swapped_backward(grad: Tensor, seed: Tensor, corruption: Corruption, stream: int) -> Tensor:
    kept = _masked(grad, seed, corruption, stream)
    event = corruption.event
    assert event is not None
    for block, bits in bit_blocks(grad, seed, stream, event.width):
        moved = torch.empty_like(grad[block])
        _select(grad[block], bits, event, moved, hits=True)
        kept.scatter_add_(0, _swap_source(bits, event, grad.shape[0]).to(grad.device), moved)
    return kept


_Function = Callable[[Tensor, Tensor, Corruption, int], Tensor]


class _Process(NamedTuple):
    """A draw of a corruption that is not the identity, and its gradient."""

    draw: _Function
    backward: _Function


PROCESSES = {
    "masking": _Process(_masked, _masked),
    "gaussian": _Process(_gaussian, _unchanged),
    "salt_and_pepper": _Process(_salted, _masked),
    "swap": _Process(_swapped, _swapped_backward),
}
"""By the kind of corruption."""


@outside_autocast
def corrupt(
    x: Tensor,
    seed: Tensor,
    kind: str,
    params: list[float],
    stream: int,
    dtype: torch.dtype | None = None,
) -> Tensor:
    corruption = make_corruption(kind, params)
    function = _unchanged if corruption.is_identity else PROCESSES[kind].draw
    return function(x if dtype is None else x.to(dtype), seed, corruption, stream)


@outside_autocast
def corrupt_backward(grad: Tensor, seed: Tensor, kind: str, params: list[float], stream: int) -> Tensor:
    corruption = make_corruption(kind, params)
    function = _unchanged if corruption.is_identity else PROCESSES[kind].backward
    return function(grad, seed, corruption, stream)


# --- noise on the code ----------------------------------------------------------------------------------


@outside_autocast
def random_signs(like: Tensor, seed: Tensor, stream: int) -> Tensor:
    out = torch.empty(like.shape, dtype=like.dtype, device=like.device)
    for block, bits in bit_blocks(like, seed, stream):
        out[block] = bits.bitwise_right_shift(31).mul_(2).add_(1)
    return out


@outside_autocast
def perturb(code: Tensor, seed: Tensor, noise: str, noise_std: float = 0.0, dropout: float = 0.0) -> Tensor:
    if noise == "gaussian":
        out = _add_normal(code, noise_std, seed, philox.STREAM_CODE_NOISE)
    elif noise == "bernoulli":
        out = torch.empty_like(code)
        for block, bits in bit_blocks(code, seed, philox.STREAM_CODE_NOISE):
            torch.lt(philox.uniform(bits).to(code.device), code[block], out=out[block])
    else:
        out = code if dropout else code.clone()
    return drop(out, seed, dropout, torch.empty_like(code)) if dropout else out


def drop(x: Tensor, seed: Tensor, dropout: float, out: Tensor) -> Tensor:
    event = Event(dropout)
    for block, bits in bit_blocks(x, seed, philox.STREAM_DROPOUT, event.width):
        torch.mul(x[block], keep(bits, event, x).mul_(philox.keep_scale(dropout)), out=out[block])
    return out
