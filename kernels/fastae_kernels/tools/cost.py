"""Bytes moved and products' operations of every operator, from its shape, dtype, options and plan.

Each kernel, or library product, reads each of its operands once and writes each of its results once; partial
sums are written, read by the fold and written as sums. That is the least traffic of this implementation, not
a measurement: caches that do not hold an operand make it more. Tensors of one element are left out. ``e`` is
the itemsize of the dtype, tensors are as :mod:`.operators` has them, rows M, features D, units H.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..device.activations import ACTIVATIONS
from ..launch import Target
from ..plan import config
from ..plan.calls import CALLS
from ..plan.roofline import Cost, product
from ..plan.schedules import Plan

# --- operators --------------------------------------------------------------------------------------------


def _fold(partials: int, length: int) -> int:
    """Bytes of partial sums written and read, and of the sums written."""
    return 4 * length * (2 * partials + 1)


def _total(partials: int) -> int:
    """Bytes of partials of one number, written and read."""
    return 2 * 4 * partials if partials > 1 else 0


def _on_product(plan: Plan, M: int, N: int, K: int, e: int, epilogue: int) -> Cost:
    """A product whose result is only written where the library makes it, and what its epilogue moves."""
    bare = product(M, N, K, e)
    result = e * M * N
    between = 2 * result if plan.strategy == "split" else 0
    return Cost(bare.bytes - result + between + epilogue, bare.flops)


def encode(
    M: int,
    D: int,
    H: int,
    e: int,
    plan: Plan,
    *,
    activation: str = "sigmoid",
    bias: bool = True,
    contractive: bool = False,
    difference: bool = False,
    l1: bool = False,
    code_sum: bool = False,
    dropout: bool = False,
    noise: bool = False,
    reduced: bool = True,
) -> Cost:
    """``difference``: the penalty is of the slopes' difference from those of another input's code.

    ``reduced``: the penalty and l1 are one number each, not one per row.
    """
    entries, preact = e * M * H, ACTIVATIONS[activation].preactivation
    blocks_m, blocks_n = plan.blocks(M, H)
    moved = entries * (1 + preact + (dropout and not noise)) + e * H * bias
    per_row = _total(blocks_m * blocks_n) if reduced else _fold(blocks_n, M)
    if contractive or difference:
        moved += 4 * H + per_row + (_fold(blocks_m, H) if reduced else 0)
    if difference:
        moved += entries * (1 + preact)
    if l1:
        moved += per_row
    if code_sum:
        moved += _fold(blocks_m, H)
    cost = _on_product(plan, M, H, D, e, moved)
    return cost + perturb(M, D, H, e, plan) if noise else cost


def decode_loss(
    M: int,
    D: int,
    H: int,
    e: int,
    plan: Plan,
    *,
    bias: bool = True,
    column_sums: bool = True,
    reduced: bool = True,
) -> Cost:
    """``reduced``: the loss is one number, not one per row."""
    blocks_m, blocks_n = plan.blocks(M, D)
    sums = _total(blocks_m * blocks_n) if reduced else _fold(blocks_n, M)
    sums += _fold(blocks_m, D) if column_sums else 0
    return decode_loss_target_grad(M, D, H, e, plan, bias=bias) + Cost(sums)


def decode_loss_target_grad(M: int, D: int, H: int, e: int, plan: Plan, *, bias: bool = True) -> Cost:
    """The target read and a gradient written."""
    return _on_product(plan, M, D, H, e, 2 * e * M * D + e * D * bias)


def code_grad(
    M: int,
    D: int,
    H: int,
    e: int,
    plan: Plan,
    *,
    activation: str = "sigmoid",
    product: bool = True,
    contractive: bool = False,
    column_grad: bool = False,
    extra: bool = False,
    column_sums: bool = False,
    per_row: bool = False,
) -> Cost:
    """Without ``product`` the gradient to the code is given, and one pass does the rest.

    Sums over rows are written in ``e`` bytes. ``column_sums``: those of the product's gradient are scaled;
    ``per_row``: the penalty has a scale per row.
    """
    f, entries = ACTIVATIONS[activation], e * M * H
    blocks_m, _ = plan.blocks(M, H)
    moved = entries * (2 + f.preactivation + extra) + 8 * H * blocks_m + e * H + 4 * H * column_grad
    moved += (4 + e) * D * column_sums
    if contractive:
        moved += 4 * H * (f.second is not None) + (_fold(blocks_m, H) + 4 * M if per_row else 0)
    return _on_product(plan, M, H, D, e, moved) if product else Cost(moved + entries)


def weight_grad(
    M: int,
    D: int,
    H: int,
    e: int,
    plan: Plan,
    *,
    dual: bool = False,
    contractive: bool = False,
    scale: bool = True,
    wide: bool = False,
) -> Cost:
    """[H, D], of one product over M rows or of two; ``scale`` is one number for the only or second one.

    ``wide``: the gradient is written in float32. Split, float16 scales an operand before its product, which
    is not counted apart from scaling the result.
    """
    single, result, out = product(H, D, M, e), e * H * D, (4 if wide else e) * H * D
    own = (result + 4 * H) * contractive  # W and u
    moved = (single.bytes - result) * (1 + dual) + out + own
    if plan.strategy == "split" and (dual or scale or contractive or out != result):
        moved += 2 * result * (1 + dual)  # each product is written, and read by the pass
    return Cost(moved, single.flops * (1 + dual))


def slope_difference_grad(M: int, D: int, H: int, e: int, plan: Plan, *, activation: str = "sigmoid") -> Cost:
    preact = ACTIVATIONS[activation].preactivation
    return Cost(e * M * H * (4 + 2 * preact) + 4 * H + _fold(plan.blocks(M, H)[0], H))


def corrupt(M: int, D: int, H: int, e: int, plan: Plan, *, cast: bool = False) -> Cost:
    """x read once, though swap gathers entries of other rows; ``cast``: from float32."""
    return Cost((e + (4 if cast else e)) * M * D)


def swap_backward(M: int, D: int, H: int, e: int, plan: Plan) -> Cost:
    """Targets written, sorted as in one pass to targets and places, and read; zeros, gradient and sums."""
    targets, places = 4, 8
    return Cost((targets + (2 * targets + places) + (targets + places) + 3 * e) * M * D)


def perturb(M: int, D: int, H: int, e: int, plan: Plan) -> Cost:
    return Cost(2 * e * M * H)


def random_signs(M: int, D: int, H: int, e: int, plan: Plan) -> Cost:
    return Cost(e * M * H)


def squared_norms(M: int, D: int, H: int, e: int, plan: Plan) -> Cost:
    return Cost(e * H * D + 4 * H)


def cast_weight(M: int, D: int, H: int, e: int, plan: Plan) -> Cost:
    """From float32."""
    return Cost((4 + e) * H * D + 4 * H)


def adam(M: int, D: int, H: int, e: int, plan: Plan, *, prepares: bool = True) -> Cost:
    """A weight and two moments read and written in float32, a gradient read; a copy and norms written."""
    return Cost(7 * 4 * H * D + prepares * (e * H * D + 4 * H))


_COUNTS: dict[str, Callable[..., Cost]] = {
    f.__name__: f
    for f in (
        encode,
        decode_loss,
        decode_loss_target_grad,
        code_grad,
        weight_grad,
        slope_difference_grad,
        corrupt,
        swap_backward,
        perturb,
        random_signs,
        squared_norms,
        cast_weight,
        adam,
    )
}


def of(
    operator: str,
    M: int,
    D: int,
    H: int,
    dtype: torch.dtype,
    target: Target,
    *,
    tied: bool = False,
    dropout: bool = False,
    **options: Any,
) -> Cost:
    """The cost of a call of an operator of :mod:`.operators`, with the plan that it gets on ``target``.

    ``options`` are those of the function of that name here; ``tied`` tells how the weight lies.
    """
    name = "weight_grad dual" if operator == "weight_grad" and options.get("dual") else operator
    call = CALLS[name](M, D, H, tied)
    preact = ACTIVATIONS[options.get("activation", "sigmoid")].preactivation
    K = call.K if options.get("product", True) else 0
    plan = config.plan(
        call.M,
        call.N,
        K,
        dtype,
        target,
        operator=name,
        heavy=operator in ("encode", "code_grad")
        and K > 0
        and preact
        and dropout
        and not options.get("noise"),
        aligned=not K or call.aligned(dtype.itemsize),
        k_major=not K or call.k_major,
    )
    if operator == "encode":
        options["dropout"] = dropout
    return _COUNTS[operator](M, D, H, dtype.itemsize, plan, **options)
