"""Counts of the operators' matrix products for :class:`torch.utils.flop_counter.FlopCounterMode`."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

Shape = tuple[int, ...]


def _product(rows: Shape, weight: Shape) -> int:
    return 2 * rows[0] * weight[0] * weight[1]


def _encoder_or_decoder(x: Shape, weight: Shape, *args: Any, **options: Any) -> int:
    return _product(x, weight)


def _code_grad(grad: Shape, weight: Shape | None, *args: Any, **options: Any) -> int:
    return 0 if weight is None else _product(grad, weight)


def _weight_grad(
    a: Shape,
    b: Shape,
    scale: Shape | None = None,
    weight: Shape | None = None,
    u: Shape | None = None,
    a2: Shape | None = None,
    b2: Shape | None = None,
    scale2: Shape | None = None,
    **options: Any,
) -> int:
    second = 0 if a2 is None or b2 is None else 2 * a2[0] * a2[1] * b2[1]
    return 2 * a[0] * a[1] * b[1] + second


def register() -> None:
    operators = torch.ops.fastae
    both = [operators.encode, operators.decode_loss, operators.decode_loss_target_grad]
    register_flop_formula(both)(_encoder_or_decoder)
    register_flop_formula(operators.code_grad)(_code_grad)
    register_flop_formula(operators.weight_grad)(_weight_grad)
