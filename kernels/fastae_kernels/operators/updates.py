"""Steps of Adam on the parameters of a group: launches, without the optimizer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from ..device import adam as device
from . import buffers, run

_JOBS = 4


class Updated(NamedTuple):
    """A parameter, its gradient and its state; all contiguous, of one shape and in float32 but the copy."""

    parameter: Tensor
    grad: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor
    step: Tensor  # one value, float32: steps that were counted
    ahead: int  # and those since then, this one too
    copy: Tensor | None = None  # for the new parameter in another dtype
    sq_norms: Tensor | None = None  # [H] for the squared norms of the rows that a product reads


def adam(
    updated: Sequence[Updated],
    lr: float | Tensor,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    decoupled: bool,
) -> None:
    """A step of Adam, or of AdamW (``decoupled``), in place. ``lr`` may be a tensor of one value."""
    beta1, beta2 = betas
    on_device = isinstance(lr, Tensor)
    rule = device.Rule(
        lr=lr if on_device else None,
        factor=1.0 if on_device else lr,
        log_beta1=math.log(beta1) if beta1 else -math.inf,
        log_beta2=math.log(beta2) if beta2 else -math.inf,
        weight1=1.0 - beta1,
        beta2=beta2,
        weight2=1.0 - beta2,
        eps=eps,
        decay=weight_decay or None,
    )
    BM, BN = 4, 512
    for first in range(0, len(updated), _JOBS):
        jobs = [_job(one) for one in updated[first : first + _JOBS]]
        unit = math.gcd(8, *(job.N for job in jobs))
        blocks = sum(buffers.blocks(job.M, BM) for job in jobs)
        jobs += [device.Update()] * (_JOBS - len(jobs))
        run.launch(device.adam, blocks, updated[0].parameter.device, *jobs, rule, decoupled, BM, BN, unit)


def _job(u: Updated) -> device.Update:
    N = u.parameter.shape[-1] if u.parameter.dim() else 1
    M = u.parameter.numel() // max(N, 1)
    return device.Update(
        u.parameter, u.grad, u.exp_avg, u.exp_avg_sq, u.step, float(u.ahead), u.copy, u.sq_norms, M, N
    )
