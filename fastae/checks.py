"""Checks of single numbers and names.

``what`` is how the message begins: ``"dropout:"``, ``"Masking: p"``. Plain comparisons, which NaN fails:
``math.isfinite`` would end a compiled graph of symbolic numbers.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable
from typing import Any

FLOAT32_MAX = 3.4028234663852886e38


def fits(value: Any, condition: Callable[[Any], Any]) -> bool:
    """True if a number meets the condition; False for text, None, and several numbers."""
    try:
        return bool(condition(value))
    except (TypeError, ValueError, RuntimeError):
        return False


def check_nonnegative(what: str, value: float) -> None:
    """Weights, rates and deviations, which the operators take in float32."""
    if not fits(value, lambda v: 0.0 <= v < math.inf):
        raise ValueError(f"{what} must be a finite number >= 0, got {value!r}")
    if value > FLOAT32_MAX:
        raise ValueError(f"{what} must be at most {FLOAT32_MAX}, the largest float32, got {value!r}")


def check_positive(what: str, value: float) -> None:
    if not fits(value, lambda v: 0.0 < v < math.inf):
        raise ValueError(f"{what} must be a finite number > 0, got {value!r}")


def check_probability(what: str, value: float) -> None:
    if not fits(value, lambda v: 0.0 <= v <= 1.0):
        raise ValueError(f"{what} must be in [0, 1], got {value!r}")


def check_share(what: str, value: float) -> None:
    """A share that is dropped or set aside: less than everything."""
    if not fits(value, lambda v: 0.0 <= v < 1.0):
        raise ValueError(f"{what} must be in [0, 1), got {value!r}")


def check_whole(what: str, value: Any, least: int = 1, most: int | None = None) -> int:
    """The value as a plain ``int``; integers of NumPy and 0-d integer tensors count as whole numbers."""
    try:
        whole = operator.index(value)
    except TypeError:
        whole = least - 1
    if whole < least or (most is not None and whole > most):
        expected = f">= {least}" if most is None else f"in {least}..{most}"
        raise ValueError(f"{what} must be a whole number {expected}, got {value!r}")
    return whole


def check_name(argument: str, value: Any, known: Iterable[str]) -> None:
    names = tuple(known)
    if not isinstance(value, str) or value not in names:
        raise ValueError(f"{argument}: {value!r} is not one of {', '.join(names)}")
