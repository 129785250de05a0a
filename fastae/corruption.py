"""Corruption processes C(x~ | x): small immutable descriptions, without state or random numbers.

The operators take a corruption as its :attr:`~Corruption.kind` and :attr:`~Corruption.params`, which
:func:`make_corruption` turns back; ``str(corruption)`` and :func:`parse_corruption` are its text
(``"masking:0.25"``).
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, fields
from typing import Any, ClassVar, NamedTuple

from .checks import check_nonnegative, check_probability, fits
from .philox import MASK_WIDTH, hit_count, threshold


class Event(NamedTuple):
    """An independent event per entry: it happens with probability ``p``, drawn from ``width`` random bits."""

    p: float
    width: int = MASK_WIDTH

    @property
    def threshold(self) -> int:
        """The signed draws up to this one are hits, for p > 0."""
        return threshold(self.p, self.width)

    @property
    def half(self) -> int:
        """The threshold of the lower half of the hits."""
        return threshold(self.p / 2.0, self.width)

    @property
    def hits(self) -> int:
        """Number of the ``2**width`` draws that are hits, for p > 0."""
        return hit_count(self.p, self.width)


class Corruption:
    """Base of the corruption processes, which are listed in :data:`CORRUPTIONS`."""

    kind: ClassVar[str]

    @property
    def event(self) -> Event | None:
        """The event that changes an entry; ``None`` where the process changes entries in another way."""
        return None

    @property
    def is_identity(self) -> bool:
        """True if the process never changes anything."""
        return self.event is not None and self.event.p == 0.0

    @property
    def params(self) -> list[float]:
        """The numbers that describe the process, in the order of the constructor."""
        return [float(getattr(self, field.name)) for field in fields(self)]  # pyright: ignore[reportArgumentType]

    def __str__(self) -> str:
        return ":".join([self.kind, *(repr(value) for value in self.params)])


@dataclass(frozen=True)
class Masking(Corruption):
    """Each entry is set to 0 with probability ``p`` (Vincent et al. 2010, sec. 4.3)."""

    p: float
    kind: ClassVar[str] = "masking"

    def __post_init__(self) -> None:
        check_probability("Masking: p", self.p)

    @property
    def event(self) -> Event:
        return Event(self.p)


@dataclass(frozen=True)
class Gaussian(Corruption):
    """Independent normal noise of standard deviation ``std`` is added to each entry."""

    std: float
    kind: ClassVar[str] = "gaussian"

    def __post_init__(self) -> None:
        check_nonnegative("Gaussian: std", self.std)

    @property
    def is_identity(self) -> bool:
        return self.std == 0.0


@dataclass(frozen=True)
class SaltAndPepper(Corruption):
    """With probability ``p`` an entry becomes ``low`` or ``high``, each half of the time."""

    p: float
    low: float = 0.0
    high: float = 1.0
    kind: ClassVar[str] = "salt_and_pepper"

    def __post_init__(self) -> None:
        check_probability("SaltAndPepper: p", self.p)
        if not all(fits(value, lambda v: -math.inf < v < math.inf) for value in (self.low, self.high)):
            raise ValueError(
                f"SaltAndPepper: low and high must be finite, got {self.low!r} and {self.high!r}"
            )

    @property
    def event(self) -> Event:
        return Event(self.p)


@dataclass(frozen=True)
class Swap(Corruption):
    """With probability ``p`` an entry becomes that of a row drawn at random from the batch, same column."""

    p: float
    kind: ClassVar[str] = "swap"

    def __post_init__(self) -> None:
        check_probability("Swap: p", self.p)

    @property
    def event(self) -> Event:
        return Event(self.p, width=32)  # the row to take is read from the same draw


@dataclass(frozen=True)
class Emphasis:
    """Weights of the loss on corrupted and on clean entries (Vincent et al. 2010, sec. 4.3)."""

    corrupted: float = 1.0
    clean: float = 1.0

    def __post_init__(self) -> None:
        for name, value in (("corrupted", self.corrupted), ("clean", self.clean)):
            check_nonnegative(f"Emphasis: {name}", value)


CORRUPTIONS: dict[str, type[Corruption]] = {cls.kind: cls for cls in (Masking, Gaussian, SaltAndPepper, Swap)}


@functools.lru_cache
def _make(kind: str, params: tuple[float, ...]) -> Corruption:
    return CORRUPTIONS[kind](*params)


def make_corruption(kind: str, params: list[float]) -> Corruption:
    """The corruption with a :attr:`~Corruption.kind` and its :attr:`~Corruption.params`."""
    return _make(kind, tuple(params))


def check_corruption(corruption: Any) -> None:
    """Accept one of :data:`CORRUPTIONS` or ``None``."""
    classes = tuple(CORRUPTIONS.values())  # torch 2.11 does not compile a search of the values themselves
    if corruption is not None and type(corruption) not in classes:
        names = ", ".join(cls.__name__ for cls in classes)
        given = f"{type(corruption).__name__} {corruption!r}"
        raise ValueError(f"corruption: expected {names} or None, got {given}")


def parse_corruption(text: str) -> Corruption | None:
    """A corruption from ``"kind:number[:number...]"``, such as ``"masking:0.25"``; ``"none"`` gives ``None``.

    Raises ``ValueError`` naming what is wrong with ``text``.
    """
    kind, *numbers = text.strip().split(":")
    kind = kind.strip().lower().replace("-", "_")
    if kind == "none" and not numbers:
        return None
    if kind not in CORRUPTIONS:
        raise ValueError(
            f"corruption: {text!r} is not one of none, {', '.join(CORRUPTIONS)} (as in 'masking:0.25')"
        )
    cls = CORRUPTIONS[kind]
    names = [field.name for field in fields(cls)]  # pyright: ignore[reportArgumentType]
    try:
        values = [float(number) for number in numbers]
    except ValueError:
        raise ValueError(f"corruption: {text!r} has a part that is not a number") from None
    if not 1 <= len(values) <= len(names):
        raise ValueError(f"corruption: {text!r} has {len(values)} numbers; {kind} takes {', '.join(names)}")
    try:
        return cls(*values)
    except ValueError as error:
        raise ValueError(f"corruption: {error}") from None
