"""Corruption, noise on the code and random signs."""

from __future__ import annotations

import torch
from torch import Tensor

from ..device import epilogues, reductions
from ..device.noise import Corruption, Mask, Noise, swap
from ..device.reductions import SwapTargets
from . import buffers, run


def corrupt(x: Tensor, corruption: Corruption, dtype: torch.dtype | None = None) -> Tensor:
    """x~ [M, D] in ``dtype`` or x's, for a corruption whose ``source`` and ``out`` are filled in here."""
    out = buffers.empty(x, *x.shape, dtype=dtype)
    args = corruption._replace(out=out)
    if corruption.corruption is swap:
        args = args._replace(source=x, stride_m=x.stride(0), stride_n=x.stride(1))
    run.elementwise_pass(x, out, epilogues.corrupt, args, run.plan_of_pass("corrupt", x))
    return out


def swap_backward(grad: Tensor, mask: Mask, hits: int) -> Tensor:
    """The gradient of swap: an entry's own where it was kept, and those of the entries that came from it.

    The entries of each column are sorted by the row that they came from, and its gradients summed in order.
    """
    M, N = grad.shape
    target = buffers.empty(grad, M, N, dtype=torch.int32)
    plan = run.plan_of_pass("swap_backward", grad)
    run.elementwise_pass(None, target, reductions.swap_targets, SwapTargets(*mask, hits, target), plan)
    target, order = target.sort(dim=0, stable=True)
    out = torch.zeros(M, N, dtype=grad.dtype, device=grad.device)
    BM, BN = 4, 256
    run.launch(
        reductions.sum_runs,
        buffers.blocks(M, BM) * buffers.blocks(N, BN),
        grad.device,
        grad,
        *grad.stride(),
        target.contiguous(),
        order.contiguous(),
        out,
        M,
        N,
        BM,
        BN,
        buffers.unit(N),
    )
    return out


def perturb(code: Tensor, noise: Noise | None, dropout: Mask | None, seed: Tensor) -> Tensor:
    """The code as the decoder sees it, [M, H]."""
    out = buffers.empty(code, *code.shape)
    mask = (dropout or Mask())._replace(seed=seed)
    args = epilogues.Perturb(*(noise or Noise()), *mask, out)
    run.elementwise_pass(code, out, epilogues.perturb, args, run.plan_of_pass("perturb", code))
    return out


def random_signs(like: Tensor, seed: Tensor, stream: int) -> Tensor:
    """-1 or 1, in the shape and dtype of ``like``."""
    out = buffers.empty(like, *like.shape)
    args = epilogues.Signs(seed, stream, out)
    run.elementwise_pass(None, out, epilogues.random_signs, args, run.plan_of_pass("random_signs", like))
    return out
