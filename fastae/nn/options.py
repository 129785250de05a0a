"""The kind of an autoencoder: one immutable description for modules, checkpoints and commands."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from ..corruption import Emphasis, parse_corruption
from ..objective import Objective, ObjectiveOptions


@dataclass(frozen=True)
class Options(Objective):
    """The options of an autoencoder: those of its :class:`~fastae.objective.Objective`, and two more.

    A corruption may be given as text such as ``"masking:0.25"``.

    Attributes:
        tied: whether the decoder's weight is the encoder's, transposed.
        bias: whether encoder and decoder have biases.
    """

    tied: bool = True
    bias: bool = True

    def __post_init__(self) -> None:
        if isinstance(self.corruption, str):
            object.__setattr__(self, "corruption", parse_corruption(self.corruption))
        super().__post_init__()

    def to_dict(self) -> dict[str, Any]:
        """Plain values that JSON can hold; :meth:`from_dict` turns them back."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        values["corruption"] = "none" if self.corruption is None else str(self.corruption)
        values["emphasis"] = None if self.emphasis is None else asdict(self.emphasis)
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Options:
        """Raises ``ValueError`` or ``TypeError`` naming what does not fit."""
        emphasis = values.get("emphasis")
        return cls(**{**values, "emphasis": None if emphasis is None else Emphasis(**emphasis)})

    @staticmethod
    def make(base: Options | None, changes: dict[str, Any]) -> Options:
        """``base`` (or the defaults) with ``changes``; ``TypeError`` for an option that does not exist."""
        known = [f.name for f in fields(Options)]
        for name in changes:
            if name not in known:
                raise TypeError(f"{name}: no such option; the options are {', '.join(known)}")
        return replace(base or Options(), **changes)


class OptionChanges(ObjectiveOptions, total=False):
    """Types of :class:`Options`' fields as keyword arguments."""

    tied: bool
    bias: bool
