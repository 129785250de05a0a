"""Where a training run stands, as ``state.json`` holds it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any


@dataclass
class RunState:
    """The position of a run and all that its next step depends on, besides tensors.

    Attributes:
        data: fingerprint of the training rows.
        budget: bytes that data and cached codes may take; kept, because caching decides how values round.
        stage: index of the current stage.
        epoch: epochs of the stage that are complete.
        step: steps of the current epoch that are complete.
        sums: each loss term times its rows, summed over the current epoch.
        best: the stage's best validation loss so far, where it may stop early.
        stale: epochs since then.
        seconds: time spent in training steps.
        history: one row of the log per epoch.
        finished: whether all stages are complete.
    """

    data: str
    budget: int
    stage: int = 0
    epoch: int = 0
    step: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    best: float | None = None
    stale: int = 0
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)
    finished: bool = False

    def begin_stage(self) -> None:
        """Stand at the first step of a stage."""
        self.epoch = self.step = self.stale = 0
        self.sums, self.best = {}, None

    def end_epoch(self, row: dict[str, Any]) -> None:
        """Append an epoch's row to the history and stand at the first step of the next epoch."""
        self.history.append(row)
        self.epoch, self.step, self.sums = self.epoch + 1, 0, {}

    def end_stage(self) -> None:
        """Stand before the next stage."""
        self.stage += 1
        self.begin_stage()

    def to_json(self) -> dict[str, Any]:
        """Plain values that JSON can hold."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any], *, within_stage: bool) -> RunState:
        """The inverse of :meth:`to_json`.

        Args:
            values: what was saved; keys of other things are left alone.
            within_stage: whether the sums and the best loss of a stage have to be there.

        Raises:
            ValueError: a key is missing; named.
        """
        optional = set() if within_stage else {"sums", "best", "stale"}
        names = [f.name for f in fields(cls)]
        if missing := sorted(set(names) - set(values) - optional):
            raise ValueError(f"{', '.join(missing)} missing")
        return cls(**{name: values[name] for name in names if name in values})
