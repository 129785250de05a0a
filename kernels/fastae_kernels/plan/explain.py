"""The plans of a training step, with the estimates that they rest on."""

from __future__ import annotations

from typing import NamedTuple

import torch

from ..launch import Target
from . import choices, config, estimate
from .calls import CALLS
from .schedules import Plan

DEVICES = {
    "a100": Target("cuda", 80, 108, "NVIDIA A100-SXM4-80GB"),
    "h100": Target("cuda", 90, 132, "NVIDIA H100 80GB HBM3"),
    "h200": Target("cuda", 90, 132, "NVIDIA H200"),
    "b200": Target("cuda", 100, 148, "NVIDIA B200"),
    "mi300x": Target("hip", "gfx942", 304, "AMD Instinct MI300X"),
}
"""Cards to plan for without one, by short name; their peaks are in :mod:`.estimate`."""

OPERATORS = ("encode", "decode_loss", "code_grad", "weight_grad")


class Explanation(NamedTuple):
    """A product of a step: its plan, both strategies' estimated times, and what decided."""

    operator: str
    M: int
    N: int
    K: int
    plan: Plan
    fused: estimate.Estimate
    split: estimate.Estimate
    reason: str

    def __str__(self) -> str:
        times = " ".join(
            f"{name} {1e6 * e.seconds:.0f} us (loop {1e6 * e.loop:.0f}, rest {1e6 * e.rest:.0f})"
            for name, e in (("fused", self.fused), ("split", self.split))
        )
        shape = f"[{self.M}, {self.K}] [{self.K}, {self.N}]"
        return f"{self.operator} {shape}: {self.plan}; {self.reason}; estimated {times}"


def explain(
    M: int, D: int, H: int, dtype: torch.dtype, target: Target, *, tied: bool = True
) -> list[Explanation]:
    """Explain the plan of each product of a step on M rows, D features and H units on ``target``.

    The estimates are no measurements (:mod:`.estimate`).
    """
    rows = []
    products = config.precision(dtype, target)
    for name in OPERATORS:
        operator = "weight_grad dual" if tied and name == "weight_grad" else name
        call, aligned = CALLS[operator](M, D, H, tied), CALLS[operator](M, D, H, tied).aligned(dtype.itemsize)
        plan = config.plan(*call[:3], dtype, target, operator=operator, aligned=aligned, k_major=call.k_major)
        kind = str(dtype).removeprefix("torch.")
        key = choices.Key(operator, kind, products, False, aligned, call.k_major, *call[:3])
        measured = choices.lookup(target.device, key)
        if measured is not None and measured.strategy is not None:
            reason = "measured on this device"
        else:
            reason = config.obstacle(key, dtype, target) or "the least estimate"
        rows.append(
            Explanation(
                operator,
                *call[:3],
                plan,
                estimate.fused(key, dtype, target, plan.gemm),
                estimate.split(key, dtype, target),
                reason,
            )
        )
    return rows
