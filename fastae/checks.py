"""Checks of single numbers; ``what`` is how the message begins: ``"dropout:"``, ``"Masking: p"``.

Plain comparisons, which NaN fails: ``math.isfinite`` would end a compiled graph of symbolic numbers.
"""

from __future__ import annotations

import math


def check_nonnegative(what: str, value: float) -> None:
    if not 0.0 <= value < math.inf:
        raise ValueError(f"{what} must be a finite number >= 0, got {value!r}")


def check_probability(what: str, value: float) -> None:
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{what} must be in [0, 1], got {value!r}")


def check_share(what: str, value: float) -> None:
    """All but everything: what is dropped or set aside."""
    if not 0.0 <= value < 1.0:
        raise ValueError(f"{what} must be in [0, 1), got {value!r}")
