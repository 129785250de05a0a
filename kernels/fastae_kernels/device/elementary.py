"""Exponential, logarithm and reciprocal in float32: the hardware's own on CUDA, Triton's elsewhere.

Largest errors by the PTX manual, subnormal numbers being 0: ``ex2.approx.ftz`` 2^-22 of the value,
``lg2.approx.ftz`` 2^-22 near 1 and 2^-22 of the value elsewhere, ``rcp.approx.ftz`` 1 unit in the last place.
Triton's portable forms spend three to twenty instructions more on subnormal numbers and last places.
"""

# pyright: reportArgumentType=false, reportCallIssue=false
# (Triton's own annotations know no builtins without a builder)

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from triton import knobs
from triton.language.target_info import is_cuda

COMPILED = tl.constexpr(not knobs.runtime.interpret)  # the interpreter knows no assembly
_LOG2_E = tl.constexpr(1.4426950408889634)
_LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def exp(z) -> Any:
    if COMPILED and is_cuda():
        return tl.inline_asm_elementwise(
            "ex2.approx.ftz.f32 $0, $1;", "=f,f", [z * _LOG2_E], dtype=tl.float32, is_pure=True, pack=1
        )
    else:
        return tl.exp(z)


@triton.jit
def log(x) -> Any:
    if COMPILED and is_cuda():
        return _LN_2 * tl.inline_asm_elementwise(
            "lg2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    else:
        return tl.log(x)


@triton.jit
def reciprocal(x) -> Any:
    if COMPILED and is_cuda():
        return tl.inline_asm_elementwise(
            "rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    else:
        return 1.0 / x
