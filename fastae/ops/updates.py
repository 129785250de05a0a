"""Adam on matrices whose gradient is a sum over entries, in PyTorch: it is formed for some rows at a time."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from ..tensors import normalize_rows_, outside_autocast, project_rows_
from .segments import entry_blocks, segment_sums

_BLOCK = 1 << 18  # entries of a block of rows: its weights, moments and gradient stay in a core's cache

Entries = tuple[Tensor, Tensor, Tensor, Tensor]
"""table [N, D], index [E], starts [H + 1] and values [E]; see :func:`fastae.ops.segment_sums`."""


def rates(step: Tensor, lr: float | Tensor, betas: tuple[float, float]) -> tuple[float | Tensor, ...]:
    """lr / (1 - beta1^t) and sqrt(1 - beta2^t): float64 tensors where the step count is on a device."""
    beta1, beta2 = betas
    if step.device.type == "cpu":
        count = float(step)
        return float(lr) / (1.0 - beta1**count), (1.0 - beta2**count) ** 0.5
    count = step.double()
    return lr / (1.0 - beta1**count), (1.0 - beta2**count).sqrt()


@outside_autocast
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
    rate, root = rates(step, lr, betas)
    height = len(parameter) if entries is None else max(1, _BLOCK // parameter[0].numel())
    for block, g in _gradients(parameter, entries, gradient, height):
        p, m, v = parameter[block], exp_avg[block], exp_avg_sq[block]
        if unit:
            project_rows_(g, p)
        m.lerp_(g, 1.0 - betas[0])
        v.mul_(betas[1]).addcmul_(g, g, value=1.0 - betas[1])
        denominator = (v.sqrt() / root).add_(eps)
        if isinstance(rate, float):
            p.addcdiv_(m, denominator, value=-rate)
        else:
            p.sub_(m / denominator * rate)
        if unit:
            normalize_rows_(p)


def _gradients(
    parameter: Tensor, entries: Entries | None, gradient: Tensor | None, height: int
) -> Iterator[tuple[slice, Tensor]]:
    """Blocks of ``height`` rows and their gradients."""
    if entries is None:
        assert gradient is not None
        yield slice(None), gradient
        return
    table, index, starts, values = entries
    for block, part, own in entry_blocks(starts, len(index), height):
        g = segment_sums(table, index[part], own, values[part])[0].to(parameter.dtype)
        yield block, g if gradient is None else g.add_(gradient[block])
