"""Adam (Kingma and Ba 2015), and what the next step reads of a weight, in one pass over parameters."""

# pyright: reportArgumentType=false, reportGeneralTypeIssues=false
# (Triton's own annotations know neither numbers for constants nor its loops)

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .dependence import follow
from .tiles import load_tile, multiple_of, store_tile, tile_indices

_SMALL = tl.constexpr(0.5)  # below it a series keeps the digits that a difference with 1 would lose


class Rule(NamedTuple):
    """The numbers that all parameters of a group share, in float32."""

    lr: Any  # a tensor of one value, or None
    factor: float  # of ``lr``, or the learning rate
    log_beta1: float
    log_beta2: float
    weight1: float  # 1 - beta1
    beta2: float
    weight2: float  # 1 - beta2
    eps: float
    decay: Any  # None without weight decay


class Update(NamedTuple):
    """A step on a parameter [M, N]; no job without one. All matrices are contiguous."""

    parameter: Any = None
    grad: Any = None
    exp_avg: Any = None
    exp_avg_sq: Any = None
    step: Any = None  # one value: steps that were counted
    ahead: float = 0.0  # and those since then, this one too
    copy: Any = None  # [M, N], of the new parameter, or None
    sq_norms: Any = None  # [M], of the copy's rows or of the parameter's, or None
    M: int = 0
    N: int = 0


@triton.jit
def moved(p, m, v, g, rate, root, rule):
    """(p, m, v) after a step, for rate = lr / (1 - beta1^t) and root = sqrt(1 - beta2^t)."""
    m += rule.weight1 * (g - m)
    v = rule.beta2 * v + rule.weight2 * g * g
    return p - rate * m / (tl.sqrt(v) / root + rule.eps), m, v


@triton.jit
def _correction(log_beta, t):
    """1 - beta^t."""
    y = log_beta * t
    series = 1.0 + y * (1.0 / 6.0) * (1.0 + y * (1.0 / 7.0) * (1.0 + y * (1.0 / 8.0)))
    series = 1.0 + y * (1.0 / 3.0) * (1.0 + y * (1.0 / 4.0) * (1.0 + y * (1.0 / 5.0) * series))
    return tl.where(y > -_SMALL, -y * (1.0 + y * 0.5 * series), 1.0 - tl.exp(y))


@triton.jit
def _update(
    job, rule, block, DECOUPLED: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, UNIT: tl.constexpr
):
    """One block of rows of a job, if it has it; returns the block's number in the job after it."""
    if job.parameter is not None:  # Triton 3.6 cannot compare a tuple with None
        blocks = tl.cdiv(job.M, BM)
        if (block >= 0) & (block < blocks):
            lr = rule.factor
            if rule.lr is not None:
                lr = tl.load(rule.lr).to(tl.float32) * rule.factor
            t = tl.load(job.step).to(tl.float32) + job.ahead
            rate = lr / _correction(rule.log_beta1, t)
            root = tl.sqrt(_correction(rule.log_beta2, t))
            M = job.M
            N = multiple_of(job.N, UNIT)
            total = tl.zeros((BM, BN), tl.float32)
            for start in range(0, N, BN):
                row, col = tile_indices(block, 0, BM, BN)
                col += start
                p = load_tile(job.parameter, row, col, M, N)  # [BM, BN]
                g = load_tile(job.grad, row, col, M, N)
                if rule.decay is not None:
                    if DECOUPLED:
                        p -= lr * rule.decay * p
                    else:
                        g += rule.decay * p
                m = load_tile(job.exp_avg, row, col, M, N)
                v = load_tile(job.exp_avg_sq, row, col, M, N)
                p, m, v = moved(p, m, v, g, rate, root, rule)
                store_tile(job.parameter, p, row, col, M, N)
                store_tile(job.exp_avg, m, row, col, M, N)
                store_tile(job.exp_avg_sq, v, row, col, M, N)
                if job.copy is not None:
                    store_tile(job.copy, p, row, col, M, N)
                    p = p.to(job.copy.dtype.element_ty).to(tl.float32)
                total += p * p  # zero outside, where nothing moves
            if job.sq_norms is not None:
                row, col = tile_indices(block, 0, BM, BN)
                tl.store(job.sq_norms + row, tl.sum(total, 1), mask=row < M)
        block -= blocks
    return block


@triton.jit
def adam(
    one, two, three, four, rule,
    DECOUPLED: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    """Up to four jobs (:class:`Update`) in one launch, a program per BM rows. UNIT divides every N."""
    follow()
    block = _update(one, rule, tl.program_id(0), DECOUPLED, BM, BN, UNIT)
    block = _update(two, rule, block, DECOUPLED, BM, BN, UNIT)
    block = _update(three, rule, block, DECOUPLED, BM, BN, UNIT)
    _update(four, rule, block, DECOUPLED, BM, BN, UNIT)
