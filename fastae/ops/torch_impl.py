"""The operators in PyTorch: the library's matrix products, and their elementwise work in blocks of rows.

A block is small enough that its temporaries stay in a core's cache and come from memory already mapped:
on a CPU a fresh large buffer costs more in page faults than the arithmetic on it. Sums are kept in float32
(float64 for float64), and 16-bit inputs are widened block by block.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .. import philox
from ..activations import Activation, get_activation
from ..corruption import Corruption, Event, Gaussian, SaltAndPepper, make_corruption
from ..losses import get_loss
from ..philox import row_blocks
from ..tensors import outside_autocast, reduce_rows, sum_dtype
from .adam import adam_rows as adam_rows
from .segments import segment_loss as segment_loss
from .segments import segment_sums as segment_sums
from .selection import batch_entries as batch_entries
from .selection import entries_above as entries_above
from .selection import top_entries as top_entries


def _none(like: Tensor) -> Tensor:
    return like.new_empty(0)


def _wide(block: Tensor) -> Tensor:
    """The block in its sums' dtype; the block itself where it has that already."""
    return block.to(sum_dtype(block.dtype))


def _store(block: Tensor, value: Tensor) -> None:
    if block.data_ptr() != value.data_ptr():
        block.copy_(value)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.mm(x, weight.t()) if bias is None else torch.addmm(bias.to(x.dtype), x, weight.t())


def _rows_of(scale: Tensor, block: slice) -> Tensor:
    """The block's part of a scale: a scalar, or a column [rows, 1]."""
    return scale if scale.dim() == 0 else scale[block, None]


# --- random numbers -------------------------------------------------------------------------------------


def _keep(bits: Tensor, event: Event, like: Tensor) -> Tensor:
    """1 where the event did not happen, else 0, in ``like``'s dtype."""
    if event.p == 0.0:
        return torch.ones(bits.shape, dtype=like.dtype, device=like.device)
    keep = torch.empty(bits.shape, dtype=like.dtype)
    return torch.gt(bits, event.threshold, out=keep).to(like.device)


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


def _bit_blocks(
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
    for block, bits in _bit_blocks(x, seed, stream, even=True):
        wide = _wide(x[block])
        _store(out[block], wide + std * philox.standard_normal(bits)[:, : x.shape[1]].to(wide))
    return out


# --- corruption -----------------------------------------------------------------------------------------


def _masked(x: Tensor, seed: Tensor, corruption: Corruption, stream: int) -> Tensor:
    """x with the entries set to 0 that the event (p > 0) hits."""
    event = corruption.event
    assert event is not None
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    for block, bits in _bit_blocks(x, seed, stream, event.width):
        _select(x[block], bits, event, out[block])
    return out


def _gaussian(x: Tensor, seed: Tensor, corruption: Corruption, stream: int) -> Tensor:
    assert isinstance(corruption, Gaussian)
    return _add_normal(x, corruption.std, seed, stream)


def _salted(x: Tensor, seed: Tensor, corruption: Corruption, stream: int) -> Tensor:
    assert isinstance(corruption, SaltAndPepper)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    event = corruption.event
    for block, bits in _bit_blocks(x, seed, stream, event.width):
        hit = (bits <= event.threshold).to(x.device)
        salt = (bits > event.half).to(x.device)
        extreme = torch.where(salt, x.new_full((), corruption.high), x.new_full((), corruption.low))
        out[block] = torch.where(hit, extreme, x[block])
    return out


def _swapped(x: Tensor, seed: Tensor, corruption: Corruption, stream: int) -> Tensor:
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    event = corruption.event
    assert event is not None
    for block, bits in _bit_blocks(x, seed, stream, event.width):
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
    for block, bits in _bit_blocks(grad, seed, stream, event.width):
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
    for block, bits in _bit_blocks(like, seed, stream):
        out[block] = bits.bitwise_right_shift(31).mul_(2).add_(1)
    return out


@outside_autocast
def perturb(code: Tensor, seed: Tensor, noise: str, noise_std: float = 0.0, dropout: float = 0.0) -> Tensor:
    if noise == "gaussian":
        out = _add_normal(code, noise_std, seed, philox.STREAM_CODE_NOISE)
    elif noise == "bernoulli":
        out = torch.empty_like(code)
        for block, bits in _bit_blocks(code, seed, philox.STREAM_CODE_NOISE):
            torch.lt(philox.uniform(bits).to(code.device), code[block], out=out[block])
    else:
        out = code if dropout else code.clone()
    return _drop(out, seed, dropout, torch.empty_like(code)) if dropout else out


def _drop(x: Tensor, seed: Tensor, dropout: float, out: Tensor) -> Tensor:
    event = Event(dropout)
    for block, bits in _bit_blocks(x, seed, philox.STREAM_DROPOUT, event.width):
        torch.mul(x[block], _keep(bits, event, x).mul_(philox.keep_scale(dropout)), out=out[block])
    return out


# --- encoder --------------------------------------------------------------------------------------------


@outside_autocast
def squared_norms(weight: Tensor) -> Tensor:
    # vector_norm is the one reduction that squares without writing the squares out
    return torch.linalg.vector_norm(weight, dim=1, dtype=sum_dtype(weight.dtype)).square_()


@outside_autocast
def cast_weight(weight: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    copy = weight.to(dtype, copy=True, memory_format=torch.contiguous_format)
    return copy, squared_norms(copy)


@outside_autocast
def encode(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str,
    sq_norms: Tensor | None = None,
    base_code: Tensor | None = None,
    base_preact: Tensor | None = None,
    l1: bool = False,
    code_sum: bool = False,
    seed: Tensor | None = None,
    noise: str = "none",
    noise_std: float = 0.0,
    dropout: float = 0.0,
    reduction: str = "none",
) -> tuple[Tensor, ...]:
    f = get_activation(activation)
    z = _linear(x, weight, bias)
    rows, units = z.shape
    sums = functools.partial(z.new_zeros, dtype=sum_dtype(z.dtype))
    reduced = sq_norms is not None and reduction != "none"
    penalty = sums(rows if sq_norms is not None and not reduced else 0)
    slope_sums = sums(units if reduced else 0)
    l1_rows = sums(rows if l1 else 0)
    column_sums = sums(units if code_sum else 0)
    code = torch.empty_like(z) if f.needs_preactivation else z
    for block in row_blocks(rows, units):
        z_wide = _wide(z[block])
        h = f.function(z_wide) if f.needs_preactivation else f.in_place(z_wide)
        _store(code[block], h)
        if sq_norms is not None:
            s = f.derivative(h, z_wide)
            if base_code is not None:
                s = s - _slopes(f, base_code, base_preact, block)
            if reduced:
                slope_sums += s.square_().sum(0)
            else:
                penalty[block] = s.square_() @ sq_norms
        if l1:
            torch.linalg.vector_norm(h, 1, dim=1, out=l1_rows[block])
        if code_sum:
            column_sums += h.sum(0)
    noisy = _none(z)
    if seed is not None and (noise != "none" or dropout):
        noisy = perturb(code, seed, noise, noise_std, dropout)
    if reduced:
        penalty = slope_sums @ sq_norms  # pyright: ignore[reportOperatorIssue]
        penalty = penalty / rows if reduction == "mean" else penalty
    if l1:
        l1_rows = reduce_rows(l1_rows, reduction, l1_rows.shape)
    preact_or_none = z if f.needs_preactivation else _none(z)
    return code, noisy, preact_or_none, penalty, l1_rows, column_sums, slope_sums


def _slopes(f: Activation, code: Tensor, preact: Tensor | None, block: slice) -> Tensor:
    z = preact[block] if f.needs_preactivation and preact is not None else code[block]
    return f.derivative(_wide(code[block]), _wide(z))


def _over(scale: Tensor | None, factor: float, rows: int, mean: bool) -> Tensor | None:
    """``factor`` times a scale, over the number of rows for a mean."""
    factor = factor / max(rows, 1) if mean else factor
    return scale if scale is None or factor == 1.0 else scale * factor


def _scaled_product(a: Tensor, b: Tensor, scale: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """a b, scaled where that is free: by a scalar that the host knows; and the scale still to apply."""
    if scale is None:
        return torch.mm(a, b), None
    if scale.dim() == 0 and scale.device.type == "cpu":
        return _scaled_mm(a, b, float(scale)), None
    if a.dtype == torch.float16:  # the product might overflow before it is scaled
        return torch.mm(_scaled_rows(a, scale), b), None
    return torch.mm(a, b), scale


def _scaled_rows(a: Tensor, scale: Tensor) -> Tensor:
    """``diag(scale) a``, in a's dtype."""
    return (a * (scale if scale.dim() == 0 else scale[:, None])).to(a.dtype)


def _scaled_mm(a: Tensor, b: Tensor, alpha: float) -> Tensor:
    out = torch.empty(a.shape[0], b.shape[1], dtype=a.dtype, device=a.device)
    return torch.addmm(out, a, b, beta=0, alpha=alpha, out=out)


@outside_autocast
def code_grad(
    grad: Tensor,
    weight: Tensor | None,
    code: Tensor,
    preact: Tensor,
    activation: str,
    scale: Tensor | None = None,
    penalty_scale: Tensor | None = None,
    penalty: float = 1.0,
    sq_norms: Tensor | None = None,
    l1_scale: Tensor | None = None,
    l1: float = 1.0,
    mean: bool = False,
    column_grad: Tensor | None = None,
    extra: Tensor | None = None,
    seed: Tensor | None = None,
    dropout: float = 0.0,
    sums: torch.dtype | None = None,
    column_sums: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    f = get_activation(activation)
    rows, units = code.shape
    scale = _over(scale, 1.0, rows, mean)
    penalty_scale = _over(penalty_scale, penalty, rows, mean)
    l1_scale = _over(l1_scale, l1, rows, mean)
    scaled_sums = code.new_zeros(0, dtype=sum_dtype(code.dtype))
    if sums is not None and column_sums is not None:
        scaled_sums = (column_sums if scale is None else column_sums * scale).to(sums)
    owned = weight is not None  # the product is ours to overwrite; an upstream gradient is not
    dh = grad
    if weight is not None:
        dh, scale = _scaled_product(grad, weight, scale)
    dz = dh if owned else torch.empty_like(code)
    if seed is not None and dropout:
        dh = _drop(dh, seed, dropout, dz)
        owned = True
    wide = sum_dtype(code.dtype)
    db = code.new_zeros(0 if sums is None else units, dtype=wide)
    per_row = penalty_scale is not None and penalty_scale.dim() == 1
    u = code.new_zeros(units if per_row else 0, dtype=wide)
    for block in row_blocks(rows, units):
        h = _wide(code[block])
        z = _wide(preact[block]) if f.needs_preactivation else preact
        d = dh[block].to(wide, copy=not owned)
        if scale is not None:
            d.mul_(_rows_of(scale, block))
        if l1_scale is not None:
            d.addcmul_(h.sign(), _rows_of(l1_scale, block).to(wide))
        if column_grad is not None:
            d.add_(column_grad)
        if penalty_scale is not None and sq_norms is not None:
            s = f.derivative(h, z)
            twice = 2.0 * _rows_of(penalty_scale, block)
            if f.second is not None:
                d.addcmul_(f.second(h, s, z), twice * sq_norms)
            d.mul_(s)
            if per_row:
                u += (s.square_() * twice).sum(0)
        elif activation != "linear":  # whose slope is 1
            d.mul_(f.derivative(h, z))
        if extra is not None:
            d.add_(extra[block])
        if sums is not None:
            db += d.sum(0)
        _store(dz[block], d)
    return dz, db if sums is None else db.to(sums), u, scaled_sums


@outside_autocast
def weight_grad(
    a: Tensor,
    b: Tensor,
    scale: Tensor | None = None,
    weight: Tensor | None = None,
    u: Tensor | None = None,
    a2: Tensor | None = None,
    b2: Tensor | None = None,
    scale2: Tensor | None = None,
    u_scale: Tensor | None = None,
    u_factor: float = 1.0,
    mean: bool = False,
    dtype: torch.dtype | None = None,
) -> Tensor:
    rows = len(a)
    a, alpha = _scaled(a, _over(scale, 1.0, rows, mean))
    if weight is not None and u is not None:
        if u_scale is not None:
            u = u * _over(u_scale, u_factor, rows, mean)  # pyright: ignore[reportOperatorIssue]
        elif u_factor != 1.0:
            u = u * u_factor
        out = torch.empty(weight.shape, dtype=weight.dtype, device=weight.device)
        torch.mul(weight, u[:, None].to(weight.dtype), out=out)
        out.addmm_(a.t(), b, alpha=alpha)
    else:
        out = _scaled_mm(a.t(), b, alpha)
    if a2 is not None and b2 is not None:
        a2, alpha = _scaled(a2, _over(scale2, 1.0, rows, mean))
        out.addmm_(a2.t(), b2, alpha=alpha)
    return out if dtype is None else out.to(dtype)


def _scaled(a: Tensor, scale: Tensor | None) -> tuple[Tensor, float]:
    """``diag(scale) a`` as a matrix and a factor for the product to come, free where the host knows it."""
    if scale is None:
        return a, 1.0
    if scale.dim() == 0 and scale.device.type == "cpu" and a.dtype != torch.float16:
        return a, float(scale)  # in float16 the product might overflow before it is scaled
    return _scaled_rows(a, scale), 1.0


# --- decoder --------------------------------------------------------------------------------------------


def _decode_blocks(
    code: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    seed: Tensor | None,
    kind: str,
    params: list[float] | None,
    corrupted: float,
    clean: float,
) -> tuple[Tensor, Iterator[tuple[slice, Tensor | None]]]:
    """The pre-activation a [M, D], and its blocks with the weights of their entries (None: all 1)."""
    if weight is not None:
        a = _linear(code, weight, bias)
    else:  # a copy, which losses write into
        a = code.clone() if bias is None else code + bias.to(code.dtype)

    def blocks() -> Iterator[tuple[slice, Tensor | None]]:
        if seed is None:
            for block in row_blocks(*a.shape):
                yield block, None
            return
        event = make_corruption(kind, params or []).event
        assert event is not None
        for block, bits in _bit_blocks(a, seed, philox.STREAM_CORRUPTION, event.width):
            keep = _keep(bits, event, _wide(a[:0]))
            yield block, keep.mul_(clean - corrupted).add_(corrupted)

    return a, blocks()


@outside_autocast
def decode_loss(
    code: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    target: Tensor,
    loss: str,
    output_activation: str = "linear",
    seed: Tensor | None = None,
    kind: str = "none",
    params: list[float] | None = None,
    corrupted: float = 1.0,
    clean: float = 1.0,
    missing: bool = False,
    column_sums: bool = False,
    reduction: str = "none",
) -> tuple[Tensor, Tensor, Tensor]:
    formula, f = get_loss(loss, output_activation), get_activation(output_activation)
    grad, blocks = _decode_blocks(code, weight, bias, seed, kind, params, corrupted, clean)
    rows = grad.new_empty(grad.shape[0], dtype=sum_dtype(grad.dtype))
    sums = rows.new_zeros(grad.shape[1] if column_sums else 0)
    for block, entry_weights in blocks:
        a = _wide(grad[block])
        x = target[block].to(a.dtype)
        slope = None
        if output_activation != "linear":
            r = f.function(a)
            slope = f.derivative(r, a)
            a = r
        gone = x.isnan() if missing else None
        entries, g = formula.entries_and_slope(a, x)
        if slope is not None:
            g.mul_(slope)
        if entry_weights is not None:
            entries.mul_(entry_weights)
            g.mul_(entry_weights)
        if gone is not None:
            entries.masked_fill_(gone, 0.0)
            g.masked_fill_(gone, 0.0)
        rows[block] = entries.sum(1)
        if column_sums:
            sums += g.sum(0)
        _store(grad[block], g)
    return reduce_rows(rows, reduction, rows.shape), grad, sums


@outside_autocast
def decode_loss_target_grad(
    code: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    target: Tensor,
    loss: str,
    output_activation: str = "linear",
    seed: Tensor | None = None,
    kind: str = "none",
    params: list[float] | None = None,
    corrupted: float = 1.0,
    clean: float = 1.0,
    missing: bool = False,
) -> Tensor:
    formula, f = get_loss(loss, output_activation), get_activation(output_activation)
    product, blocks = _decode_blocks(code, weight, bias, seed, kind, params, corrupted, clean)
    grad = torch.empty(target.shape, dtype=target.dtype, device=target.device)
    for block, entry_weights in blocks:
        a = _wide(product[block])
        x = target[block].to(a.dtype)
        g = formula.target_slope(f.function(a), x)
        if entry_weights is not None:
            g.mul_(entry_weights)
        if missing:
            g.masked_fill_(x.isnan(), 0.0)
        grad[block] = g
    return grad


# --- higher-order contraction ---------------------------------------------------------------------------


@outside_autocast
def slope_difference_grad(
    code: Tensor,
    preact: Tensor,
    code2: Tensor,
    preact2: Tensor,
    activation: str,
    sq_norms: Tensor,
    scale: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    f = get_activation(activation)
    dz, dz2 = torch.empty_like(code), torch.empty_like(code)
    u = torch.zeros_like(sq_norms)
    for block in row_blocks(*code.shape):
        h, h2 = _wide(code[block]), _wide(code2[block])
        z, z2 = (_wide(preact[block]), _wide(preact2[block])) if f.needs_preactivation else (preact, preact2)
        s, s2 = f.derivative(h, z), f.derivative(h2, z2)
        difference = s - s2
        twice = 2.0 * _rows_of(scale, block).to(difference.dtype)
        ds = difference * sq_norms * twice
        dz[block] = ds * f.second(h, s, z) if f.second is not None else 0.0
        dz2[block] = -ds * f.second(h2, s2, z2) if f.second is not None else 0.0
        u += (difference.square_() * twice).sum(0)
    return dz, dz2, u
