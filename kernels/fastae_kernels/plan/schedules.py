"""Tiles and schedules of products and passes, which make a plan."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Strategy = Literal["fused", "split"]


@dataclass(frozen=True)
class GemmConfig:
    """Tile shape and schedule of one matrix product."""

    block_m: int
    block_n: int
    block_k: int
    warps: int
    stages: int
    subtiles: int = 1  # the epilogue works on this many parts of a tile, one after another
    light_subtiles: int = 0  # one with few operands on this many; 0 as others
    heavy_subtiles: int = 0  # and one with many operands on this many; 0 where registers do not suffice
    group: int = 8  # tiles of rows that are visited together
    tma: bool = False
    persistent: bool = False
    programs: int = 1  # that fit a multiprocessor, so that one's epilogue runs beside another's loop
    epilogue_warps: int = 0  # of its own, in crews of 4; 0 where an epilogue has the loop's

    @property
    def epilogue_tile(self) -> tuple[int, int]:
        return self.block_m, self.block_n // self.subtiles

    def shared_bytes(self, operand: int, *, exact: bool = False) -> int:
        """Shared memory of a program whose operands have so many bytes per entry, as far as tiles need it.

        Those that are finished lie beside operands: in float32 for an ``exact`` epilogue, else as operands.
        """
        steps = (self.block_m + self.block_n) * self.block_k * self.stages
        finished = self.block_m * self.block_n if self.epilogue_warps else 0
        return operand * steps + (4 if exact else operand) * finished

    def __str__(self) -> str:
        tile = f"{self.block_m}x{self.block_n}x{self.block_k} {self.warps}w {self.stages}s"
        parts = f" /{self.subtiles}" if self.subtiles > 1 else ""
        return (
            f"{tile}{parts} g{self.group}"
            + (" persistent" if self.persistent else "")
            + (f" x{self.programs}" if self.programs > 1 else "")
            + (f" +{self.epilogue_warps}w" if self.epilogue_warps else "")
        )


@dataclass(frozen=True)
class PassConfig:
    """Tile shape of one elementwise pass."""

    block_m: int = 32
    block_n: int = 64
    warps: int = 4

    def __str__(self) -> str:
        return f"{self.block_m}x{self.block_n} {self.warps}w"


@dataclass(frozen=True)
class Plan:
    """One call: a product with an epilogue (fused), or the library's product and a pass over it (split)."""

    strategy: Strategy
    gemm: GemmConfig
    elementwise: PassConfig
    aligned: bool = True  # whether the operands it was made for start their rows at multiples of 16 bytes

    def __str__(self) -> str:
        return f"fused {self.gemm}" if self.strategy == "fused" else f"split, pass {self.elementwise}"

    @property
    def epilogue_tile(self) -> tuple[int, int]:
        if self.strategy == "fused":
            return self.gemm.epilogue_tile
        return self.elementwise.block_m, self.elementwise.block_n

    def blocks(self, M: int, N: int) -> tuple[int, int]:
        """Numbers of tiles along rows and columns of [M, N], which are those of the partial sums."""
        BM, BN = self.epilogue_tile
        if self.strategy == "fused":
            return -(-M // BM), -(-N // self.gemm.block_n) * self.gemm.subtiles
        return -(-M // BM), -(-N // BN)
