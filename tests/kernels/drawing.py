"""Kernels that store the noise they draw."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from fastae_kernels.device import noise
from fastae_kernels.device.tiles import entries, inside, tile_indices
from torch import Tensor

from tests.kernels.support import DEVICE, ON_GPU

LARGE = (16, 64) if ON_GPU else (64, 512)  # the interpreter takes about as long for each tile
kernel_bits, kernel_normal = noise.random_bits, noise.standard_normal


@triton.jit
def store_bits(seed, stream, first, out, M, N, WIDTH: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr):
    """The bits of tiles (first, 0), (first, 1), ... as the first rows of out [M, N]."""
    bits = kernel_bits(seed, stream, first + tl.program_id(0), tl.program_id(1), N, WIDTH, BM, BN)
    row, col = tile_indices(tl.program_id(0), tl.program_id(1), BM, BN)
    tl.store(entries(out, row, col, N), bits, mask=inside(row, col, M, N))


@triton.jit
def store_normal(seed, stream, out, M, N, BM: tl.constexpr, BN: tl.constexpr):
    normal = kernel_normal(seed, stream, tl.program_id(0), tl.program_id(1), N, BM, BN)
    row, col = tile_indices(tl.program_id(0), tl.program_id(1), BM, BN)
    tl.store(entries(out, row, col, N), normal, mask=inside(row, col, M, N))


def a_seed(number: int) -> Tensor:
    return torch.tensor([number], device=DEVICE)


def grid(M: int, N: int, BM: int, BN: int) -> tuple[int, int]:
    return triton.cdiv(M, BM), triton.cdiv(N, BN)


def bits_of(
    seed: int, stream: int, M: int, N: int, width: int, tile: tuple[int, int] = LARGE, first: int = 0
) -> Tensor:
    """The kernels' draws, [M, N], on the CPU."""
    out = torch.empty(M, N, dtype={16: torch.int16, 32: torch.int32}[width], device=DEVICE)
    store_bits[grid(M, N, *tile)](a_seed(seed), stream, first, out, M, N, width, *tile)
    return out.cpu()


def normal_of(seed: int, stream: int, M: int, N: int, tile: tuple[int, int] = LARGE) -> Tensor:
    out = torch.empty(M, N, device=DEVICE)
    store_normal[grid(M, N, *tile)](a_seed(seed), stream, out, M, N, *tile)
    return out.cpu()
