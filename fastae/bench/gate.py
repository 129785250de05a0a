"""The gate before every ratio: outputs and gradients against float64, on the tensors that are timed."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor

from .. import functional
from .groups import Group
from .problems import MASKING, Problem
from .providers import Provider

TOLERANCES = {"float32": 1e-5, "bfloat16": 2e-2, "float16": 2e-2, "float64": 1e-11}
"""Largest error by dtype: the norm of the difference over the norm of what is exact."""

_ROWS = 1024  # of the exact computation at a time


def error_of(provider: Provider, group: Group, problem: Problem) -> float:
    """The largest relative error of a provider's outputs and gradients; nan or inf where they are not finite.

    What comes back is that of one more run, whose noise is known: PyTorch's functions return the noisy input
    with their outputs, and fastae's noise is a function of the seed. The noise itself must leave every entry
    as it was or make it 0, and its share of zeros must be that of the corruption, within six standard
    deviations and a rounding of PyTorch's draws, which have the dtype of x; else the error is infinite.
    """
    problem = problem.head(provider.rows)
    torch.manual_seed(1)
    outputs = provider.forward()
    gradients = provider.backward() if provider.leaves else ()
    noisy = problem.x
    if group.noisy:
        noisy = outputs[-1]
        if noisy.shape != problem.x.shape:  # no noisy input among the outputs: it is fastae's
            torch.manual_seed(1)
            noisy = functional.corrupt(problem.x, MASKING)
        if not _is_masked(noisy, problem.x):
            return math.inf
    exact_outputs, exact_gradients = exact(group, problem, noisy)
    return largest_error(
        [*zip(outputs, exact_outputs, strict=False), *zip(gradients, exact_gradients, strict=True)]
    )


def exact(group: Group, problem: Problem, noisy: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs and gradients in float64, a block of rows after another."""
    wide = problem.wide()
    rows, leaves = len(wide.x), group.leaves(wide)
    blocks: list[tuple[Tensor, ...]] = []
    for start in range(0, rows, _ROWS):
        part = slice(start, start + _ROWS)
        block = replace(wide, x=wide.x[part], code=wide.code[part], code_grad=wide.code_grad[part])
        outputs = group.exact(noisy[part].detach().double(), block)
        terms = [
            (output * seed).sum() / (rows if not isinstance(seed, Tensor) else 1)
            for output, seed in zip(outputs, group.seeds(block), strict=False)
        ]
        if leaves:
            torch.stack(terms).sum().backward()
        blocks.append(tuple(output.detach() for output in outputs))
    outputs = [torch.cat(parts) for parts in zip(*blocks, strict=True)]
    return [o.mean() if o.dim() == 1 else o for o in outputs], [
        leaf.grad for leaf in leaves if leaf.grad is not None
    ]


def _is_masked(noisy: Tensor, x: Tensor) -> bool:
    hit = noisy == 0
    share, expected = hit.double().mean().item(), MASKING.p
    deviation = math.sqrt(expected * (1.0 - expected) / x.numel())
    allowed = 6.0 * deviation + torch.finfo(x.dtype).eps * expected
    return abs(share - expected) <= allowed and bool(((noisy == x) | hit).all())


def largest_error(pairs: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Of results against those in float64, the norm of the difference over the norm; nan if any is nan."""
    errors = [float((ours.detach().double() - true).norm() / true.norm()) for ours, true in pairs]
    return math.nan if any(math.isnan(error) for error in errors) else max(errors)
