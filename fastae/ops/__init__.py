"""The operators behind :mod:`fastae.functional`: each declared once, with one implementation per device.

Every matrix here is two-dimensional with unit last stride (weights may be transposed views), rows are
samples, and no input is written to. The operators are opaque to torch.compile and have no autograd formula;
:mod:`fastae.gradients` wraps their hand-derived gradients around them. Sums over features, units and rows are
kept in at least float32. A ``scale`` is a scalar tensor or one value per row; ``mean`` divides scales by the
number of rows. A ``reduction`` over rows is "mean", "sum" or "none". A ``seed`` is what
:func:`fastae.philox.draw_seed` gives: int64 [1], or uint64 [4] with the place of the matrix in a larger one.

Results that were not asked for are tensors without elements, since operators cannot return ``None``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..activations import get_activation
from ..tensors import sum_dtype
from . import backend, flops, torch_impl
from .declaration import DECLARATIONS, operator
from .updates import Entries


@functools.cache
def _implementation(name: str, device: torch.device) -> Callable[..., Any]:
    if backend.backend_of(name, device)[0] == "torch":
        return getattr(torch_impl, name)
    from . import triton_impl  # imports Triton

    return triton_impl.implementation(name)


def forget_backends() -> None:
    """Make the next call of each operator read FASTAE_BACKEND again."""
    _implementation.cache_clear()
    backend.runs_pytorch.cache_clear()


def _none(like: Tensor) -> Tensor:
    return like.new_empty(0)


def _sums(like: Tensor, size: int, wanted: bool = True, reduction: str = "none") -> Tensor:
    shape = () if wanted and reduction != "none" else (size if wanted else 0,)
    return like.new_empty(shape, dtype=sum_dtype(like.dtype))


class CastWeight(NamedTuple):
    """Results of :func:`cast_weight`."""

    weight: Tensor  # [H, D]
    sq_norms: Tensor  # [H], of the rounded weight


class Encoded(NamedTuple):
    """Results of :func:`encode`."""

    code: Tensor  # [M, H]
    noisy: Tensor  # [M, H], as the decoder sees the code, where noise or dropout was asked for
    preact: Tensor  # [M, H], where the activation's derivatives need it
    penalty: Tensor  # [M] or reduced, with sq_norms
    l1: Tensor  # [M] or reduced, the sum of the code's magnitudes
    code_sum: Tensor  # [H], the sum of the code over rows
    slope_sums: Tensor  # [H], the sum of s^2 over rows, with a reduced penalty


class DecodedLoss(NamedTuple):
    """Results of :func:`decode_loss`."""

    loss: Tensor  # [M] or reduced
    grad: Tensor  # [M, D], the gradient of each row's loss with respect to the pre-activation a
    column_sums: Tensor  # [D], of grad


class CodeGradient(NamedTuple):
    """Results of :func:`code_grad`."""

    dz: Tensor  # [M, H]
    db: Tensor  # [H], the column sums of dz, with sums
    u: Tensor  # [H], the factor of the weight's own rows in its gradient, with a penalty_scale per row
    scaled_sums: Tensor  # [D], scale times column_sums


class SlopeDifferenceGradient(NamedTuple):
    """Results of :func:`slope_difference_grad`."""

    dz: Tensor  # [M, H]
    dz2: Tensor  # [M, H]
    u: Tensor  # [H]


class TopEntries(NamedTuple):
    """Results of :func:`top_entries`."""

    values: Tensor  # [M, k], float32 or wider
    latents: Tensor  # [M, k], int64


class SegmentSums(NamedTuple):
    """Results of :func:`segment_sums`."""

    sums: Tensor  # [S, D], with values
    dots: Tensor  # [E], float32 or wider, with a second table


class SegmentLoss(NamedTuple):
    """Results of :func:`segment_loss`."""

    loss: Tensor  # [S], float32 or wider
    grad: Tensor  # [S, D], the gradient of each segment's loss with respect to its sum


_operator = operator(_implementation)


@_operator
def corrupt(
    x: Tensor,
    seed: Tensor,
    kind: str,
    params: list[float],
    stream: int,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """A draw x~ [M, D] of a corruption, given by its kind and numbers, of x [M, D]; in ``dtype`` or x's."""
    return x.new_empty(x.shape, dtype=dtype)


@_operator
def corrupt_backward(grad: Tensor, seed: Tensor, kind: str, params: list[float], stream: int) -> Tensor:
    """d loss / dx from grad = d loss / dx~, both [M, D]."""
    return grad.new_empty(grad.shape)


@_operator
def random_signs(like: Tensor, seed: Tensor, stream: int) -> Tensor:
    """-1 or 1 with equal probability, in the shape and dtype of ``like`` [M, H]."""
    return like.new_empty(like.shape)


@_operator
def perturb(code: Tensor, seed: Tensor, noise: str, noise_std: float = 0.0, dropout: float = 0.0) -> Tensor:
    """The code as the decoder sees it, [M, H]: noise, then dropout."""
    return code.new_empty(code.shape)


@_operator
def squared_norms(weight: Tensor) -> Tensor:
    """q_j = sum_i W_ji^2, [H], of a weight [H, D]."""
    return _sums(weight, weight.shape[0])


@_operator
def cast_weight(weight: Tensor, dtype: torch.dtype) -> CastWeight:
    """A weight [H, D] in another dtype, and its squared norms."""
    copy = weight.new_empty(weight.shape, dtype=dtype)
    return CastWeight(copy, _sums(copy, weight.shape[0]))


@_operator
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
) -> Encoded:
    """h = f(x W^T + b) for x [M, D] and W [H, D], and the sums over it that are asked for.

    With ``sq_norms`` q [H] the penalty per row, sum_j s_j^2 q_j, of the slopes s = f'; or, with a base code
    (and pre-activation) [M, H] of another input, of the difference between the slopes there and here.
    ``reduction`` is that of the penalty and of ``l1``.
    """
    rows, units = x.shape[0], weight.shape[0]
    code = x.new_empty(rows, units)
    return Encoded(
        code,
        torch.empty_like(code) if noise != "none" or dropout else _none(x),
        torch.empty_like(code) if get_activation(activation).needs_preactivation else _none(x),
        _sums(x, rows, sq_norms is not None, reduction),
        _sums(x, rows, l1, reduction),
        _sums(x, units, code_sum),
        _sums(x, units, sq_norms is not None and reduction != "none"),
    )


@_operator
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
) -> DecodedLoss:
    """The reconstruction loss for a code [M, H], weight [D, H] and target [M, D], and its gradient.

    Without a weight ``code`` is its product with one, [M, D].
    With a seed, entries count ``corrupted`` times where the corruption (``kind``, ``params``) drawn from that
    seed hits them, and ``clean`` times elsewhere. With ``missing``, entries whose target is NaN have no loss
    and no gradient. ``entry_weight`` [M or 1, D or 1], of any strides, are further weights; entries of weight
    0 have no loss and no gradient, whatever their target.
    """
    return DecodedLoss(
        _sums(code, code.shape[0], True, reduction),
        code.new_empty(target.shape),
        _sums(code, target.shape[1], column_sums),
    )


@_operator
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
    """The gradient [M, D] of the loss per row of :func:`decode_loss` with respect to the target."""
    return target.new_empty(target.shape)


@_operator
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
) -> CodeGradient:
    """The gradient dz [M, H] with respect to the encoder's pre-activation, and its column sums.

    The upstream gradient with respect to the code is ``scale`` times grad [M, D] times weight [D, H], or
    without a weight ``scale`` times grad [M, H] itself. ``l1`` times ``l1_scale``, ``column_grad`` [H] and
    ``penalty`` times ``penalty_scale`` (with ``sq_norms`` [H]) add the gradients of the penalties, ``extra``
    [M, H] is added to dz. ``preact`` is read where the activation needs it. ``sums`` is the dtype of db and
    of the scaled ``column_sums`` [D], for which ``scale`` is a scalar.
    """
    units = code.shape[1]
    per_row = penalty_scale is not None and penalty_scale.dim() == 1
    return CodeGradient(
        code.new_empty(code.shape),
        _sums(code, 0) if sums is None else code.new_empty(units, dtype=sums),
        _sums(code, units, per_row),
        _sums(code, 0)
        if sums is None or column_sums is None
        else column_sums.new_empty(column_sums.shape, dtype=sums),
    )


@_operator
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
    """a^T diag(scale) b + diag(u_factor u_scale u) W + a2^T diag(scale2) b2.

    The matrices a, b, a2 and b2 have one row per sample, ``u_scale`` is a scalar. The result is in ``dtype``,
    or in that of the matrices.
    """
    return a.new_empty(a.shape[1], b.shape[1], dtype=dtype)


@_operator
def slope_difference_grad(
    code: Tensor,
    preact: Tensor,
    code2: Tensor,
    preact2: Tensor,
    activation: str,
    sq_norms: Tensor,
    scale: Tensor,
) -> SlopeDifferenceGradient:
    """The gradient of sum_j (s_j - s2_j)^2 q_j with respect to both pre-activations, and u."""
    return SlopeDifferenceGradient(
        code.new_empty(code.shape), code.new_empty(code.shape), _sums(code, code.shape[1])
    )


@_operator
def top_entries(
    x: Tensor, weight: Tensor, bias: Tensor | None, k: int, subset: Tensor | None = None
) -> TopEntries:
    """The k largest entries per row of x W^T + b for x [M, D] and W [H, D], high to low, and their latents.

    Selection is on sums in float32 and exact: NaN counts as the largest value, and ties go to the lower
    latent. With a ``subset`` [L], rising, only its latents count. ``k`` is at most their number.
    """
    values = x.new_empty(x.shape[0], k, dtype=sum_dtype(x.dtype))
    return TopEntries(values, torch.empty_like(values, dtype=torch.int64))


@_operator
def segment_sums(
    table: Tensor,
    index: Tensor,
    starts: Tensor,
    values: Tensor | None = None,
    other: Tensor | None = None,
    place: Tensor | None = None,
) -> SegmentSums:
    """The sums of values [E] times rows of a table [R, D] by segments, [S, D].

    Segment s holds the entries starts[s] to starts[s + 1], with ``starts`` [S + 1]; entry i takes row
    index[i]. With a second table ``other`` [S, D], also the product of each entry's row with that of its
    segment, [E], at ``place`` (a permutation [E]) or in the entries' order.
    """
    entries, segments, width = index.shape[0], starts.shape[0] - 1, table.shape[1]
    return SegmentSums(
        _none(table) if values is None else table.new_empty(segments, width),
        _sums(table, entries, other is not None),
    )


@_operator
def segment_loss(
    table: Tensor,
    index: Tensor,
    starts: Tensor,
    values: Tensor,
    target: Tensor,
    bias: Tensor | None = None,
) -> SegmentLoss:
    """The squared error of each sum of :func:`segment_sums`, plus ``bias`` [D], against ``target`` [S, D]."""
    segments = starts.shape[0] - 1
    return SegmentLoss(_sums(table, segments), table.new_empty(segments, table.shape[1]))


NAMES = tuple(DECLARATIONS)


# --- no operators: sizes depend on values, or arguments are written -----------------------------------------


def batch_entries(
    x: Tensor, weight: Tensor, bias: Tensor | None, number: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The ``number`` largest relu(x W^T + b) of all rows: values and latents [number], offsets [N + 1].

    In order of rows, then of latents. Ties go to the lower row, then to the lower latent. Where fewer are
    positive, the last row is filled up with entries of value 0.
    """
    return _implementation("batch_entries", x.device)(x, weight, bias, number)


def entries_above(
    x: Tensor, weight: Tensor, bias: Tensor | None, bound: Tensor, most: int | None = None
) -> tuple[Tensor, Tensor, Tensor] | None:
    """The entries x W^T + b > bound (a scalar or [H]): values and latents [E], and offsets [N + 1].

    Returns:
        ``None`` where there are more than ``most`` entries, or would be by the density of those seen.
    """
    return _implementation("entries_above", x.device)(x, weight, bias, bound, most)


def adam_rows(
    parameter: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: Tensor,
    lr: float | Tensor,
    betas: tuple[float, float],
    eps: float,
    entries: Entries | None = None,
    gradient: Tensor | None = None,
    unit: bool = False,
) -> None:
    """A step of Adam on a parameter, in place, without a matrix of its gradient.

    The gradient of a matrix [H, D] is the sum of ``entries`` (table [N, D], index, starts [H + 1] and values,
    as for :func:`segment_sums`) and of ``gradient``, one of which may be ``None``. ``step`` counts this step,
    too. With ``unit`` the gradient's part along each row is left out, and rows end with norm 1.
    """
    run = _implementation("adam_rows", parameter.device)
    run(parameter, exp_avg, exp_avg_sq, step, lr, betas, eps, entries, gradient, unit)


flops.register()
