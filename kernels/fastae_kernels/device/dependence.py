"""Programmatic dependent launch: a kernel's programs start while the kernel before it still runs.

What they do until :func:`follow` overlaps with that kernel's end, and the launch itself costs less. Every
kernel begins with :func:`follow`, so that a kernel that has ended has waited for all kernels before it.
"""

from __future__ import annotations

import triton
import triton.language as tl  # noqa: F401  (the interpreter looks for it)
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait
from triton.language.target_info import cuda_capability_geq

from .elementary import COMPILED


@triton.jit
def follow():
    """Wait for the kernel before this one and its writes, and allow the next one to start."""
    if COMPILED and cuda_capability_geq(9, 0):
        gdc_wait()
        gdc_launch_dependents()
