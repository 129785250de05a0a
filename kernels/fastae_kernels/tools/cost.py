"""What every operator costs: bytes moved and operations, from its shape, dtype, options and plan.

Each kernel, or library product, reads each of its operands once and writes each of its results once; partial
sums are written, read by the fold and written as sums. That is the least traffic of this implementation, not
a measurement: caches that do not hold an operand make it more. Tensors of one element are left out. ``e`` is
the itemsize of the dtype, tensors are as :mod:`.operators` has them, rows M, features D, units H.
"""

from __future__ import annotations

import ast
import functools
import inspect
import textwrap
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from ..device.activations import ACTIVATIONS, sign
from ..device.losses import LOSSES
from ..launch import Target
from ..plan import config
from ..plan.roofline import Cost, product
from ..plan.schedules import Plan

# --- what a plan is made for ------------------------------------------------------------------------------


class Call(NamedTuple):
    """The product [M, K] [K, N] of a call on contiguous matrices; K = 0 for a pass over [M, N]."""

    M: int
    N: int
    K: int
    k_major: bool
    widths: tuple[int, ...]  # of the operands' rows

    def aligned(self, itemsize: int) -> bool:
        return all(width * itemsize % 16 == 0 for width in self.widths)


CALLS: dict[str, Callable[[int, int, int, bool], Call]] = {  # from M, D, H, tied
    "encode": lambda M, D, H, tied: Call(M, H, D, True, (D,)),
    "decode_loss": lambda M, D, H, tied: Call(M, D, H, not tied, (H, D) if tied else (H,)),
    "decode_loss_target_grad": lambda M, D, H, tied: Call(M, D, H, not tied, (H, D) if tied else (H,)),
    "code_grad": lambda M, D, H, tied: Call(M, H, D, tied, (D,) if tied else (D, H)),
    "weight_grad": lambda M, D, H, tied: Call(H, D, M, False, (H, D)),
    "weight_grad dual": lambda M, D, H, tied: Call(H, D, M, False, (H, D)),
    "corrupt": lambda M, D, H, tied: Call(M, D, 0, True, ()),
    "perturb": lambda M, D, H, tied: Call(M, H, 0, True, ()),
    "random_signs": lambda M, D, H, tied: Call(M, H, 0, True, ()),
    "slope_difference_grad": lambda M, D, H, tied: Call(M, H, 0, True, ()),
    "swap_backward": lambda M, D, H, tied: Call(M, D, 0, True, ()),
    "squared_norms": lambda M, D, H, tied: Call(H, D, 0, True, ()),
}


# --- operations of an entry -------------------------------------------------------------------------------


@functools.cache
def _operations(function: Any, activation: str = "linear") -> int:
    """Operators and functions in the source of a device function, and in those that it calls.

    What is made of numbers alone is not counted, nor what only names a shape. ``activation`` is what
    ``f.function`` and ``f.slope`` of a loss are.
    """
    source = ast.parse(textwrap.dedent(inspect.getsource(function.fn)))
    names = function.fn.__globals__

    def constant(node: ast.AST) -> bool:
        if isinstance(node, ast.BinOp):
            return constant(node.left) and constant(node.right)
        if isinstance(node, ast.UnaryOp):
            return constant(node.operand)
        return isinstance(node, ast.Constant) or (isinstance(node, ast.Name) and node.id.startswith("_"))

    def count(node: ast.AST) -> int:
        if constant(node):
            return 0
        own = int(isinstance(node, ast.BinOp | ast.UnaryOp | ast.Compare))
        if isinstance(node, ast.Call):
            called = node.func
            if isinstance(called, ast.Name):
                own = _operations(names[called.id])
            elif isinstance(called, ast.Attribute) and called.attr in ("function", "slope"):
                own = _operations(getattr(ACTIVATIONS[activation], called.attr))
            else:
                own = int(not (isinstance(called, ast.Attribute) and called.attr == "full"))
        return own + sum(count(child) for child in ast.iter_child_nodes(node))

    return sum(count(statement) for statement in source.body[0].body)  # pyright: ignore[reportAttributeAccessIssue]


_DROPOUT = 2  # a comparison and a product; drawing the bits is integer work
_SUM = 1


# --- operators --------------------------------------------------------------------------------------------


def _fold(partials: int, length: int) -> int:
    """Partial sums written and read, the sums written."""
    return 4 * length * (2 * partials + 1)


def _on_product(how: Plan, M: int, N: int, K: int, e: int, epilogue: int, elementwise: int) -> Cost:
    """A product whose result is only written where the library makes it, and what its epilogue moves."""
    bare = product(M, N, K, e)
    result = e * M * N
    between = 2 * result if how.strategy == "split" else 0
    return Cost(bare.bytes - result + between + epilogue, bare.flops, elementwise * M * N)


def encode(
    M: int, D: int, H: int, e: int, how: Plan, *, activation: str = "sigmoid", bias: bool = True,
    contractive: bool = False, difference: bool = False, l1: bool = False, code_sum: bool = False,
    dropout: bool = False, noise: bool = False,
) -> Cost:  # fmt: skip
    """``difference``: the penalty is of the slopes' difference from those of another input's code."""
    f, entries = ACTIVATIONS[activation], e * M * H
    blocks_m, blocks_n = how.blocks(M, H)
    preact = ACTIVATIONS[activation].preactivation
    dropped = dropout and not noise
    moved = entries * (1 + preact + dropped) + e * H * bias
    operations = bias + _operations(f.function) + dropped * _DROPOUT
    if contractive or difference:
        moved += 4 * H + _fold(blocks_n, M)
        operations += _operations(f.slope) + 2 + _SUM
    if difference:
        moved += entries * (1 + preact)
        operations += _operations(f.slope) + 1
    if l1:
        moved += _fold(blocks_n, M)
        operations += 1 + _SUM
    if code_sum:
        moved += _fold(blocks_m, H)
        operations += _SUM
    cost = _on_product(how, M, H, D, e, moved, operations)
    return cost + perturb(M, D, H, e, how, noise=noise, dropout=dropout) if noise else cost


def _decode(loss_entry: Any, M: int, D: int, H: int, e: int, how: Plan, bias: bool, emphasis: bool,
            output_activation: str, moved: int, operations: int) -> Cost:  # fmt: skip
    """The target read, the gradient written, and ``moved`` besides."""
    moved += 2 * e * M * D + e * D * bias
    return _on_product(
        how, M, D, H, e, moved, operations + bias + _operations(loss_entry, output_activation) + emphasis
    )


def decode_loss(
    M: int, D: int, H: int, e: int, how: Plan, *, loss: str = "bce", output_activation: str = "linear",
    bias: bool = True, emphasis: bool = False, column_sums: bool = True,
) -> Cost:  # fmt: skip
    blocks_m, blocks_n = how.blocks(M, D)
    moved = _fold(blocks_n, M) + (_fold(blocks_m, D) if column_sums else 0)
    operations = _SUM + column_sums * _SUM + emphasis  # the loss is weighted here, its gradient in _decode
    entry = LOSSES[loss].entry
    return _decode(entry, M, D, H, e, how, bias, emphasis, output_activation, moved, operations)


def decode_loss_target_grad(
    M: int, D: int, H: int, e: int, how: Plan, *, loss: str = "bce", output_activation: str = "linear",
    bias: bool = True, emphasis: bool = False,
) -> Cost:  # fmt: skip
    entry = LOSSES[loss].target_gradient
    return _decode(entry, M, D, H, e, how, bias, emphasis, output_activation, 0, 0)


def code_grad(
    M: int, D: int, H: int, e: int, how: Plan, *, activation: str = "sigmoid", product: bool = True,
    scale: bool = True, dropout: bool = False, contractive: bool = False, l1: bool = False,
    column_grad: bool = False, extra: bool = False,
) -> Cost:  # fmt: skip
    """Without ``product`` the gradient to the code is given, and one pass does the rest."""
    f, entries = ACTIVATIONS[activation], e * M * H
    blocks_m, _ = how.blocks(M, H)
    moved = (
        entries * (2 + (ACTIVATIONS[activation].preactivation) + extra)
        + _fold(blocks_m, H)
        + 4 * H * column_grad
    )
    operations = scale + dropout * _DROPOUT + column_grad + extra + _operations(f.slope) + 1 + _SUM
    if l1:
        operations += _operations(sign) + 2
    if contractive:
        moved += 4 * H * (f.second is not None) + _fold(blocks_m, H)
        operations += 2 + _SUM + (0 if f.second is None else _operations(f.second) + 3)
    if product:
        return _on_product(how, M, H, D, e, moved, operations)
    return Cost(moved + entries, 0, operations * M * H)


def weight_grad(
    M: int, D: int, H: int, e: int, how: Plan, *, dual: bool = False, contractive: bool = False,
    scale: bool = True,
) -> Cost:  # fmt: skip
    """[H, D], of one product over M rows or of two; ``scale`` is one number for the only or second one.

    Split, float16 scales an operand before its product, which is not counted apart from scaling the result.
    """
    single, result = product(H, D, M, e), e * H * D
    own = (result + 4 * H) * contractive  # W and u
    operations = (scale + 2 * contractive) * H * D
    between = 0
    if (
        how.strategy == "split"
    ):  # a pass, and the sum of two products, each read the result and write it again
        between = 2 * result * ((scale or contractive) + dual)
    both = Cost(single.bytes - result, single.flops) * (1 + dual)
    return both + Cost(result + between + own, 0, operations)


def slope_difference_grad(
    M: int, D: int, H: int, e: int, how: Plan, *, activation: str = "sigmoid"
) -> Cost:  # fmt: skip
    f = ACTIVATIONS[activation]
    moved = (
        e * M * H * (4 + 2 * (ACTIVATIONS[activation].preactivation)) + 4 * H + _fold(how.blocks(M, H)[0], H)
    )
    operations = 2 * _operations(f.slope) + 7 + _SUM
    if f.second is not None:
        operations += 2 * _operations(f.second) + 3
    return Cost(moved, 0, operations * M * H)


def corrupt(M: int, D: int, H: int, e: int, how: Plan, *, kind: str = "masking") -> Cost:
    """x read once, though swap gathers entries of other rows."""
    operations = {"masking": 1, "gaussian": 2, "salt_and_pepper": 3, "swap": 1}[kind]
    return Cost(2 * e * M * D, 0, operations * M * D)


def swap_backward(M: int, D: int, H: int, e: int, how: Plan) -> Cost:
    """In two passes over float32; of the second one's traffic only the share of swapped entries is moved."""
    passes = (e + 4) + (e + 8) + (0 if e == 4 else 4 + e)
    return Cost(passes * M * D, 0, 2 * M * D)


def perturb(M: int, D: int, H: int, e: int, how: Plan, *, noise: bool = True, dropout: bool = False) -> Cost:
    return Cost(2 * e * M * H, 0, (2 * noise + dropout * _DROPOUT) * M * H)


def random_signs(M: int, D: int, H: int, e: int, how: Plan) -> Cost:
    return Cost(e * M * H, 0, M * H)


def squared_norms(M: int, D: int, H: int, e: int, how: Plan) -> Cost:
    return Cost(e * H * D + 4 * H, 0, 2 * H * D)


_COUNTS: dict[str, Callable[..., Cost]] = {
    f.__name__: f
    for f in (
        encode, decode_loss, decode_loss_target_grad, code_grad, weight_grad, slope_difference_grad, corrupt,
        swap_backward, perturb, random_signs, squared_norms,
    )
}  # fmt: skip


def of(
    operator: str, M: int, D: int, H: int, dtype: torch.dtype, target: Target, *, tied: bool = False,
    **options: Any,
) -> Cost:  # fmt: skip
    """The cost of a call of an operator of :mod:`.operators`, with the plan that it gets on ``target``.

    ``options`` are those of the function of that name here; ``tied`` tells how the weight lies.
    """
    name = "weight_grad dual" if operator == "weight_grad" and options.get("dual") else operator
    call = CALLS[name](M, D, H, tied)
    heavy = (
        operator == "code_grad"
        and ACTIVATIONS[options.get("activation", "sigmoid")].preactivation
        and options.get("dropout")
    )
    K = call.K if options.get("product", True) else 0
    how = config.plan(
        call.M, call.N, K, dtype, target, operator=name, heavy=bool(heavy and K),
        aligned=not K or call.aligned(dtype.itemsize), k_major=not K or call.k_major,
    )  # fmt: skip
    return _COUNTS[operator](M, D, H, dtype.itemsize, how, **options)


# --- a training step --------------------------------------------------------------------------------------


def step_parts(
    M: int, D: int, H: int, dtype: torch.dtype, target: Target, *, tied: bool = True,
    activation: str = "sigmoid", loss: str = "bce", output_activation: str = "linear", bias: bool = True,
    corruption: str = "none", emphasis: bool = False, contractive: bool = False, higher_order: int = 0,
    l1: bool = False, kl: bool = False, noise: bool = False, dropout: bool = False,
) -> dict[str, Cost]:  # fmt: skip
    """The costs of the operators in a forward and backward pass of an autoencoder, by name.

    ``higher_order`` is the number of noisy copies. Left out are vectors (reductions of the rows' losses, the
    KL divergence) and the optimizer.
    """
    parts: dict[str, Cost] = {}

    def add(operator: str, *, times: int = 1, name: str = "", **options: Any) -> None:
        shape = (M, H, D) if name == "weight_grad decoder" else (M, D, H)  # its result is [D, H]
        parts[name or operator] = of(operator, *shape, dtype, target, tied=tied, **options) * times

    e = dtype.itemsize
    if corruption != "none":
        add("corrupt", kind=corruption)
    if contractive or higher_order:
        add("squared_norms")
    add(
        "encode", activation=activation, bias=bias, contractive=contractive, l1=l1, code_sum=kl,
        dropout=dropout, noise=noise,
    )  # fmt: skip
    add(
        "decode_loss", loss=loss, output_activation=output_activation, bias=bias, emphasis=emphasis,
        column_sums=bias,
    )  # fmt: skip
    add(
        "code_grad", activation=activation, dropout=dropout, contractive=contractive, l1=l1, column_grad=kl,
        extra=higher_order > 0,
    )  # fmt: skip
    own = contractive or higher_order > 0
    add("weight_grad", dual=tied, contractive=own, scale=tied)
    if not tied:
        add("weight_grad", name="weight_grad decoder")
    if higher_order:
        times = higher_order
        add("corrupt", name="higher order: copies", kind="gaussian", times=2 * times)  # once more in backward
        add(
            "encode", name="higher order: encode", activation=activation, bias=bias, difference=True,
            times=times,
        )  # fmt: skip
        add("slope_difference_grad", name="higher order: slopes", activation=activation, times=times)
        # the copies' share is added to the weight's gradient, and their columns to the bias's
        again = product(H, D, M, e) + Cost(e * H * D) + Cost(e * M * H + 4 * H, 0, M * H)
        sums = Cost(3 * e * M * H, 0, M * H) * (times - 1)  # of the copies' gradients to the code
        parts["higher order: weight_grad"] = again * times + sums
    return parts


def step(M: int, D: int, H: int, dtype: torch.dtype, target: Target, **options: Any) -> Cost:
    """The cost of a forward and backward pass, the sum of :func:`step_parts`."""
    return sum(step_parts(M, D, H, dtype, target, **options).values(), Cost())
