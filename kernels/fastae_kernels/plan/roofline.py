"""Rooflines: bytes at the speed of memory, products at the speed of matrix units."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Cost:
    """Bytes moved to and from memory, and the products' floating-point operations, 2 M N K each."""

    bytes: int = 0
    flops: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.bytes + other.bytes, self.flops + other.flops)

    def __mul__(self, times: int) -> Cost:
        return Cost(times * self.bytes, times * self.flops)

    def seconds(self, bytes_per_second: float, flops_per_second: float) -> float:
        """The roofline: no less time than the slower of memory and matrix units takes."""
        return max(self.bytes / bytes_per_second, self.flops / flops_per_second)


def product(M: int, N: int, K: int, itemsize: int) -> Cost:
    """A bare product [M, K] [K, N]: both operands read once, the result written once."""
    return Cost(itemsize * (M * K + K * N + M * N), 2 * M * N * K)
