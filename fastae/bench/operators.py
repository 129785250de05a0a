"""Every operator of a training step alone, beside the least time that its bytes and operations can take.

Both are counted beside the kernels, by :mod:`fastae_kernels.tools.cost`, and turned into time by what a large
copy and a large product reach on the same machine. Counted is the least traffic of the plan that a call gets
there: each operand read once, each result written once, sums by tiles written and read. On a CPU, where no
kernels run, it is the plan for Triton's interpreter, which is fused: nothing between a product and what
follows it is counted, and the sums by tiles, which a CPU does not need, are a few hundredths.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import ops, reference
from ..activations import get_activation
from ..philox import STREAM_CORRUPTION
from ..tensors import sum_dtype
from .gate import largest_error
from .problems import CONTRACTIVE, MASKING, Problem
from .providers import Unavailable

if TYPE_CHECKING:
    from fastae_kernels.plan.roofline import Cost

GROUP = "operators"

COUNTED = (
    "MB: each operand read once and each result written once, as fastae_kernels.tools.cost counts them for "
    "the plan of each call; on a CPU for the fused one. GFLOP: of the matrix products alone.",
    "least: the slower of these MB at the measured copy's rate and these GFLOP at the measured product's; "
    "share: least over the time. It can be above 1 where caches hold the operands, which they do not for "
    "the copy.",
)
"""Explanation of the figures below the tables."""


class Tensors(NamedTuple):
    """Arguments of the operators, without gradients: rows M, features D, units H.

    Gradients are random, of the size of the other operand of a sum, so that an error in any term of a result
    shows. They are not divided by M, which float16 would not hold.
    """

    x: Tensor  # [M, D]
    weight: Tensor  # [H, D]
    bias: Tensor  # [H]
    decoder_bias: Tensor  # [D]
    code: Tensor  # [M, H]
    dz: Tensor  # [M, H]
    grad: Tensor  # d loss / d pre-activation of the decoder, [M, D]
    sq_norms: Tensor  # [H]
    u: Tensor  # [H]
    scale: Tensor
    penalty_scale: Tensor
    seed: Tensor  # [1]

    @classmethod
    def of(cls, problem: Problem) -> Tensors:
        x, weight, code = problem.x, problem.weight.detach(), problem.code.detach()
        sums = {"dtype": sum_dtype(x.dtype), "device": x.device}
        sq_norms = weight.to(sums["dtype"]).square().sum(1)
        return cls(
            x,
            weight,
            problem.bias.detach(),
            problem.decoder_bias.detach(),
            code,
            dz=code.flip(0) - 0.5,
            grad=x.flip(0) - 0.5,
            sq_norms=sq_norms,
            u=sq_norms.flip(0) * len(x) ** 0.5,
            scale=torch.tensor(0.5, **sums),
            penalty_scale=torch.tensor(CONTRACTIVE, **sums),
            seed=torch.tensor([1], device=x.device),
        )

    def wide(self) -> Tensors:
        """In float64."""
        return self._make(t.double() if t.is_floating_point() else t for t in self)


@dataclass(frozen=True)
class Operator:
    """One call of a training step: masking, sigmoid, contractive penalty, tied weights, cross-entropy.

    Attributes:
        name: of the function in :mod:`fastae.ops` and in :mod:`fastae_kernels.tools.cost`.
        arguments: of the function.
        exact: its results that are not empty, by :mod:`fastae.reference` and autograd.
        options: what the cost depends on besides shape and dtype.
    """

    name: str
    arguments: Callable[[Tensors], dict[str, Any]]
    exact: Callable[[Tensors], tuple[Tensor, ...]]
    options: dict[str, Any] = field(default_factory=dict)


def _exact_encode(t: Tensors) -> tuple[Tensor, ...]:
    code = reference.encode(t.x, t.weight, t.bias, "sigmoid")
    squares = get_activation("sigmoid").derivative(code, code).square()
    return code, (squares @ t.sq_norms).mean(), squares.sum(0)


def _exact_decode_loss(t: Tensors) -> tuple[Tensor, ...]:
    a = F.linear(t.code, t.weight.t(), t.decoder_bias).requires_grad_()
    rows = reference.reconstruction_entries(a, t.x, "bce").sum(1)
    (grad,) = torch.autograd.grad(rows.sum(), a)
    return rows.detach().mean(), grad, grad.sum(0)


def _exact_code_grad(t: Tensors) -> tuple[Tensor, ...]:
    h = t.code.clone().requires_grad_()
    s = get_activation("sigmoid").derivative(h, h)
    squares = t.penalty_scale * s.square()
    objective = t.scale * (h * (t.grad @ t.weight.t())).sum() + (squares @ t.sq_norms).sum()
    (dh,) = torch.autograd.grad(objective, h)
    dz = dh * s.detach()
    return dz, dz.sum(0), t.scale * t.grad.sum(0)


def _exact_weight_grad(t: Tensors) -> tuple[Tensor, ...]:
    return (t.dz.t() @ t.x + t.u[:, None] * t.weight,)


def _exact_dual_weight_grad(t: Tensors) -> tuple[Tensor, ...]:
    return (_exact_weight_grad(t)[0] + t.scale * (t.code.t() @ t.grad),)


OPERATORS = {
    "corrupt": Operator(
        "corrupt",
        lambda t: {
            "x": t.x,
            "seed": t.seed,
            "kind": MASKING.kind,
            "params": MASKING.params,
            "stream": STREAM_CORRUPTION,
        },
        lambda t: (reference.corrupt(t.x, MASKING, int(t.seed)),),
    ),
    "squared_norms": Operator(
        "squared_norms", lambda t: {"weight": t.weight}, lambda t: (reference.squared_norms(t.weight),)
    ),
    "encode": Operator(
        "encode",
        lambda t: {
            "x": t.x,
            "weight": t.weight,
            "bias": t.bias,
            "activation": "sigmoid",
            "sq_norms": t.sq_norms,
            "reduction": "mean",
        },
        _exact_encode,
        {"contractive": True},
    ),
    "decode_loss": Operator(
        "decode_loss",
        lambda t: {
            "code": t.code,
            "weight": t.weight.t(),
            "bias": t.decoder_bias,
            "target": t.x,
            "loss": "bce",
            "column_sums": True,
            "reduction": "mean",
        },
        _exact_decode_loss,
    ),
    "code_grad": Operator(
        "code_grad",
        lambda t: {
            "grad": t.grad,
            "weight": t.weight.t(),
            "code": t.code,
            "preact": t.code.new_empty(0),
            "activation": "sigmoid",
            "scale": t.scale,
            "penalty_scale": t.penalty_scale,
            "sq_norms": t.sq_norms,
            "sums": sum_dtype(t.x.dtype),
            "column_sums": t.grad.sum(0, dtype=sum_dtype(t.x.dtype)),
        },
        _exact_code_grad,
        {"contractive": True, "column_sums": True},
    ),
    "weight_grad": Operator(
        "weight_grad",
        lambda t: {"a": t.dz, "b": t.x, "weight": t.weight, "u": t.u},
        _exact_weight_grad,
        {"contractive": True, "scale": False},
    ),
    "weight_grad dual": Operator(
        "weight_grad",
        lambda t: {
            "a": t.dz,
            "b": t.x,
            "weight": t.weight,
            "u": t.u,
            "a2": t.code,
            "b2": t.grad,
            "scale2": t.scale,
        },
        _exact_dual_weight_grad,
        {"contractive": True, "dual": True},
    ),
}
"""Operators in the order of a step; ``weight_grad`` is for untied weights, its dual form for tied ones."""


def cost_of(operator: Operator, problem: Problem) -> Cost:
    """Bytes and operations per call.

    Raises:
        Unavailable: they are counted with Triton, which is not installed, and in 16 or 32 bits.
    """
    dtype = problem.x.dtype
    try:
        from fastae_kernels import launch
        from fastae_kernels.tools import cost
    except ImportError as error:
        raise Unavailable(
            f"bytes are counted by the kernels' plans, without Triton there are none: {error}"
        ) from None
    if dtype.itemsize > 4:
        raise Unavailable("bytes are counted by the kernels' plans, which are for 16 and 32 bits")
    target = launch.target_of(problem.x.device)
    return cost.of(operator.name, *problem.shape, dtype, target, tied=True, **operator.options)


class Call:
    """An operator with its arguments, as it is timed."""

    capturable = True

    def __init__(self, operator: Operator, tensors: Tensors) -> None:
        self.operator, self.tensors = operator, tensors
        self._function = getattr(ops, operator.name)
        self._arguments = operator.arguments(tensors)

    def forward(self) -> Any:
        return self._function(**self._arguments)

    def error(self) -> float:
        """The largest relative error of its results against float64; nan where they are not finite."""
        results = self.forward()
        results = (results,) if isinstance(results, Tensor) else [r for r in results if r.numel()]
        return largest_error(zip(results, self.operator.exact(self.tensors.wide()), strict=True))
