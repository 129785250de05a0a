"""The operators in PyTorch: the library's matrix products, and their elementwise work in blocks of rows.

A block is small enough that its temporaries stay in a core's cache and come from memory already mapped:
on a CPU a fresh large buffer costs more in page faults than the arithmetic on it. Sums are kept in float32
(float64 for float64), and 16-bit inputs are widened block by block.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch
from torch import Tensor

from .. import philox
from ..activations import Activation, get_activation
from ..corruption import make_corruption
from ..losses import Loss, get_loss
from ..philox import row_blocks
from ..reference import known
from ..tensors import outside_autocast, reduce_rows, sum_dtype
from .noise import PROCESSES as PROCESSES
from .noise import bit_blocks, drop, keep, store, widen
from .noise import corrupt as corrupt
from .noise import corrupt_backward as corrupt_backward
from .noise import perturb as perturb
from .noise import random_signs as random_signs
from .segments import segment_loss as segment_loss
from .segments import segment_sums as segment_sums
from .selection import batch_entries as batch_entries
from .selection import entries_above as entries_above
from .selection import top_entries as top_entries
from .updates import adam_rows as adam_rows


def _none(like: Tensor) -> Tensor:
    return like.new_empty(0)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.mm(x, weight.t()) if bias is None else torch.addmm(bias.to(x.dtype), x, weight.t())


def _rows_of(scale: Tensor, block: slice) -> Tensor:
    """The block's part of a scale: a scalar, or a column [rows, 1]."""
    return scale if scale.dim() == 0 else scale[block, None]


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
        z_wide = widen(z[block])
        h = f.function(z_wide) if f.needs_preactivation else f.in_place(z_wide)
        store(code[block], h)
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
    return f.derivative(widen(code[block]), widen(z))


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
        dh = drop(dh, seed, dropout, dz)
        owned = True
    wide = sum_dtype(code.dtype)
    db = code.new_zeros(0 if sums is None else units, dtype=wide)
    per_row = penalty_scale is not None and penalty_scale.dim() == 1
    u = code.new_zeros(units if per_row else 0, dtype=wide)
    for block in row_blocks(rows, units):
        h = widen(code[block])
        z = widen(preact[block]) if f.needs_preactivation else preact
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
        store(dz[block], d)
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
    """The pre-activation a [M, D], and its blocks with the emphasis of their entries (None: all 1)."""
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
        for block, bits in bit_blocks(a, seed, philox.STREAM_CORRUPTION, event.width):
            kept = keep(bits, event, widen(a[:0]))
            yield block, kept.mul_(clean - corrupted).add_(corrupted)

    return a, blocks()


def _of_block(entry_weight: Tensor | None, block: slice, dtype: torch.dtype) -> Tensor | None:
    """The block's part of weights [M or 1, D or 1]."""
    if entry_weight is None:
        return None
    return (entry_weight if len(entry_weight) == 1 else entry_weight[block]).to(dtype)


def _weighted(
    loss: Loss,
    v: Tensor,
    x: Tensor,
    emphasis: Tensor | None,
    missing: bool,
    entry_weight: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """v and x [B, D] as the loss takes them, and the factor of its slopes; v is overwritten.

    The factor is also that of the entries, unless the loss is one ``of_rows``: roots of weights in both
    factors of its sums make those weighted ones.
    """
    x, weight = known(x, missing, entry_weight)
    if emphasis is not None:
        weight = emphasis if weight is None else emphasis.mul_(weight)
    if weight is None or not loss.of_rows:
        return v, x, weight
    root = weight.sqrt()
    return v.mul_(root), x * root, root


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
    entry_weight: Tensor | None = None,
    column_sums: bool = False,
    reduction: str = "none",
) -> tuple[Tensor, Tensor, Tensor]:
    formula, f = get_loss(loss, output_activation), get_activation(output_activation)
    grad, blocks = _decode_blocks(code, weight, bias, seed, kind, params, corrupted, clean)
    rows = grad.new_empty(grad.shape[0], dtype=sum_dtype(grad.dtype))
    sums = rows.new_zeros(grad.shape[1] if column_sums else 0)
    for block, emphasis in blocks:
        a = widen(grad[block])
        x = target[block].to(a.dtype)
        slope = None
        if output_activation != "linear":
            r = f.function(a)
            slope = f.derivative(r, a)
            a = r
        a, x, factor = _weighted(formula, a, x, emphasis, missing, _of_block(entry_weight, block, a.dtype))
        entries, g = formula.entries_and_slope(a, x)
        if factor is not None:
            g.mul_(factor)
            entries = entries if formula.of_rows else entries.mul_(factor)
        if slope is not None:
            g.mul_(slope)
        rows[block] = entries.sum(1)
        if column_sums:
            sums += g.sum(0)
        store(grad[block], g)
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
    entry_weight: Tensor | None = None,
) -> Tensor:
    formula, f = get_loss(loss, output_activation), get_activation(output_activation)
    product, blocks = _decode_blocks(code, weight, bias, seed, kind, params, corrupted, clean)
    grad = torch.empty(target.shape, dtype=target.dtype, device=target.device)
    for block, emphasis in blocks:
        a = widen(product[block])
        x = target[block].to(a.dtype)
        entry_weights = _of_block(entry_weight, block, a.dtype)
        r, x, factor = _weighted(formula, f.function(a), x, emphasis, missing, entry_weights)
        g = formula.target_slope(r, x)
        grad[block] = g if factor is None else g.mul_(factor)
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
        h, h2 = widen(code[block]), widen(code2[block])
        z, z2 = (widen(preact[block]), widen(preact2[block])) if f.needs_preactivation else (preact, preact2)
        s, s2 = f.derivative(h, z), f.derivative(h2, z2)
        difference = s - s2
        twice = 2.0 * _rows_of(scale, block).to(difference.dtype)
        ds = difference * sq_norms * twice
        dz[block] = ds * f.second(h, s, z) if f.second is not None else 0.0
        dz2[block] = -ds * f.second(h2, s2, z2) if f.second is not None else 0.0
        u += (difference.square_() * twice).sum(0)
    return dz, dz2, u
