"""The least time that work can take: its bytes at the speed of memory, its products at that of arithmetic."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Cost:
    """Bytes moved to and from memory, and floating-point operations.

    ``flops`` are the products' alone, 2 M N K each, which matrix units compute. The ``elementwise`` ones, an
    arithmetic operation or elementary function of a formula each, run beside them on other units: they tell
    how heavy an epilogue is and bound no time here.
    """

    bytes: int = 0
    flops: int = 0
    elementwise: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.bytes + other.bytes, self.flops + other.flops, self.elementwise + other.elementwise)

    def __mul__(self, times: int) -> Cost:
        return Cost(times * self.bytes, times * self.flops, times * self.elementwise)

    def seconds(self, bytes_per_second: float, flops_per_second: float) -> float:
        """The roofline: no less time than the slower of memory and matrix units takes."""
        return max(self.bytes / bytes_per_second, self.flops / flops_per_second)

    @property
    def intensity(self) -> float:
        """Products' operations a byte; the machine's own ratio divides what memory bounds from the rest."""
        return self.flops / self.bytes if self.bytes else 0.0


def product(M: int, N: int, K: int, itemsize: int) -> Cost:
    """A bare product [M, K] [K, N]: both operands read once, the result written once."""
    return Cost(itemsize * (M * K + K * N + M * N), 2 * M * N * K)
