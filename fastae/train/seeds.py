"""Random numbers as functions of (seed, stage, step), so that no random state has to be kept."""

from __future__ import annotations

import torch
from torch import Tensor


def mix(seed: int, *numbers: int) -> int:
    """A 63-bit seed from a run's seed and ``numbers`` (SplitMix64's finaliser, Steele et al. 2014)."""
    value = seed
    for number in numbers:
        value = (value + 0x9E3779B97F4A7C15 * (number + 2)) % 2**64
        value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        value = (value ^ value >> 27) * 0x94D049BB133111EB % 2**64
        value ^= value >> 31
    return value >> 1


def seed_generators(device: torch.device, seed: int) -> None:
    """Seed the host's default generator and the device's."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


def epoch_order(rows: int, seed: int) -> Tensor:
    """A random order of ``rows`` rows, int64 [N] on the CPU."""
    return torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
