"""The products and passes behind the operators' calls, by shape."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class Call(NamedTuple):
    """The product [M, K] [K, N] of a call on contiguous matrices; K = 0 for a pass over [M, N]."""

    M: int
    N: int
    K: int
    k_major: bool
    widths: tuple[int, ...]  # of the operands' rows

    def aligned(self, itemsize: int) -> bool:
        return all(width * itemsize % 16 == 0 for width in self.widths)


CALLS: dict[str, Callable[[int, int, int, bool], Call]] = {  # from M, D, H, tied
    "encode": lambda M, D, H, tied: Call(M, H, D, True, (D,)),
    "decode_loss": lambda M, D, H, tied: Call(M, D, H, not tied, (H, D) if tied else (H,)),
    "decode_loss_target_grad": lambda M, D, H, tied: Call(M, D, H, not tied, (H, D) if tied else (H,)),
    "code_grad": lambda M, D, H, tied: Call(M, H, D, tied, (D,) if tied else (D, H)),
    "weight_grad": lambda M, D, H, tied: Call(H, D, M, False, (H, D)),
    "weight_grad dual": lambda M, D, H, tied: Call(H, D, M, False, (H, D)),
    "corrupt": lambda M, D, H, tied: Call(M, D, 0, True, ()),
    "perturb": lambda M, D, H, tied: Call(M, H, 0, True, ()),
    "random_signs": lambda M, D, H, tied: Call(M, H, 0, True, ()),
    "slope_difference_grad": lambda M, D, H, tied: Call(M, H, 0, True, ()),
    "swap_backward": lambda M, D, H, tied: Call(M, D, 0, True, ()),
    "squared_norms": lambda M, D, H, tied: Call(H, D, 0, True, ()),
    "cast_weight": lambda M, D, H, tied: Call(H, D, 0, True, ()),
    "adam": lambda M, D, H, tied: Call(H, D, 0, True, ()),
}
