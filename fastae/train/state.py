"""Progress of a training run, as ``state.json`` holds it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from .reporting import COLUMNS
from .typed import typed, typed_fields

_WITHIN_STAGE = ("sums", "best", "stale")
_MOST = 2**62  # of any count


@dataclass
class RunState:
    """The position of a run and all that its next step depends on, besides tensors.

    Attributes:
        data: fingerprint of the training rows.
        budget: bytes that data and cached codes may take; kept, because caching decides how values round.
        stage: index of the current stage.
        epoch: epochs of the stage that are complete.
        step: steps of the current epoch that are complete.
        seconds: time spent in training steps.
        history: one row of the log per epoch.
        finished: whether all stages are complete.
        sums: each loss term times its rows, summed over the current epoch.
        best: the stage's best validation loss so far, where it may stop early.
        stale: epochs since then.
        done: for each stage that is complete, the epochs that it was asked for.
    """

    data: str
    budget: int
    stage: int = 0
    epoch: int = 0
    step: int = 0
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)
    finished: bool = False
    sums: dict[str, float] = field(default_factory=dict)
    best: float | None = None
    stale: int = 0
    done: dict[str, int] = field(default_factory=dict)

    def begin_stage(self, number: int, name: str) -> None:
        """Stand at the first step of a stage, after the epochs that an earlier part of the run trained."""
        self.stage, self.step, self.stale = number, 0, 0
        self.epoch = max((row["epoch"] for row in self.history if row["stage"] == name), default=0)
        self.sums, self.best = {}, None

    def end_epoch(self, row: dict[str, Any]) -> None:
        """Append an epoch's row to the history and stand at the first step of the next epoch."""
        self.history.append(row)
        self.epoch, self.step, self.sums = self.epoch + 1, 0, {}

    def end_stage(self, name: str, epochs: int) -> None:
        """Stand before the next stage."""
        self.done[name] = epochs
        self.stage, self.epoch, self.step, self.stale = self.stage + 1, 0, 0, 0
        self.sums, self.best = {}, None

    def to_json(self) -> dict[str, Any]:
        """Plain values that JSON can hold; rows of the history are not copied."""
        return {f.name: getattr(self, f.name) for f in fields(self)} | {"history": list(self.history)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any], *, within_stage: bool) -> RunState:
        """The inverse of :meth:`to_json`.

        Args:
            values: what was saved; keys of other things are left alone.
            within_stage: whether the sums and the best loss of a stage have to be there.

        Raises:
            ValueError: a value is missing or makes no sense; named.
        """
        names = [f.name for f in fields(cls)]
        optional = {"done"} if within_stage else {"done", *_WITHIN_STAGE}
        if missing := sorted(set(names) - set(values) - optional):
            raise ValueError(f"{', '.join(missing)} missing")
        state = cls(**typed_fields(cls, {name: values[name] for name in names if name in values}))
        for name in ("budget", "stage", "epoch", "step", "stale"):
            if not 0 <= getattr(state, name) <= _MOST:
                raise ValueError(f"{name}: must be a whole number >= 0, got {getattr(state, name)}")
        if not 0.0 <= state.seconds < math.inf:
            raise ValueError(f"seconds: must be a finite number >= 0, got {state.seconds}")
        if state.best is not None and math.isnan(state.best):
            raise ValueError("best: is not a number")
        terms = {name.removeprefix("train_") for name in COLUMNS if name.startswith("train_")}
        if unknown := sorted(state.sums.keys() - terms):
            raise ValueError(f"sums: {unknown[0]!r} is not a term of the loss")
        if state.step and not math.isfinite(state.sums.get("total", math.nan)):
            raise ValueError("sums: need a finite total")
        for number, row in enumerate(state.history):
            _check_row(f"history[{number}]", row)
        return state


def _check_row(name: str, row: dict[str, Any]) -> None:
    """Refuse what is no row of the log."""
    for key, kind in (("stage", str), ("epoch", int), ("step", int)):
        if key not in row:
            raise ValueError(f"{name}: {key} is missing")
        typed(f"{name}.{key}", row[key], kind)
    for key, value in row.items():
        if key not in COLUMNS:
            raise ValueError(f"{name}: {key!r} is not a column of the log")
        if key != "stage":
            typed(f"{name}.{key}", value, float)
