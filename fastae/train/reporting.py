"""What a run tells while it goes: progress bars, a CSV file, TensorBoard's event files."""

from __future__ import annotations

import csv
import io
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from ..files import write_whole

COLUMNS = (
    "stage", "epoch", "step", "seconds", "rows_per_second", "lr",
    *(f"{part}_{term}" for part in ("train", "validation")
      for term in ("total", "reconstruction", "contractive", "higher_order", "l1", "kl", "error")),
)  # fmt: skip
"""Columns of log.csv: one row an epoch; terms as in fastae.AutoencoderLoss, error a share of rows,
lr the rate that the next step would have."""


class Progress(Protocol):
    """Shown to whoever waits."""

    def __enter__(self) -> Progress: ...

    def __exit__(self, *error: Any) -> None: ...

    def start(self, stage: str, steps: int, done: int) -> None:
        """A stage of ``steps`` steps begins, or goes on after ``done``."""
        ...

    def update(self, done: int, terms: Mapping[str, float], rows_per_second: float) -> None:
        """Means of the loss terms since the epoch began, after ``done`` steps of the stage."""
        ...

    def finish(self, message: str) -> None:
        """The stage has ended."""
        ...


class Silent:
    """No progress at all."""

    def __enter__(self) -> Silent:
        return self

    def __exit__(self, *error: Any) -> None:
        pass

    def start(self, stage: str, steps: int, done: int) -> None:
        pass

    def update(self, done: int, terms: Mapping[str, float], rows_per_second: float) -> None:
        pass

    def finish(self, message: str) -> None:
        pass


class RichProgress:
    """A bar a stage: loss terms, throughput, time left. Needs the package rich (extra ``train``)."""

    def __init__(self) -> None:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
        from rich.progress import Progress as Bars
        from rich.table import Column

        self._bars = Bars(
            TextColumn("{task.description}", table_column=Column(no_wrap=True, min_width=11)),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        self._task: Any = None
        self._stage = ""

    def __enter__(self) -> RichProgress:
        self._bars.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._bars.__exit__(*error)

    def start(self, stage: str, steps: int, done: int) -> None:
        self._stage = stage
        self._task = self._bars.add_task(stage, total=steps, completed=done, note="")

    def update(self, done: int, terms: Mapping[str, float], rows_per_second: float) -> None:
        parts = [f"{name} {value:.4g}" for name, value in terms.items()]
        self._bars.update(
            self._task, completed=done, note=f"{'  '.join(parts)}  {rows_per_second:,.0f} rows/s"
        )

    def finish(self, message: str) -> None:
        self._bars.update(self._task, note=message)


class Log:
    """One row an epoch into ``log.csv`` and TensorBoard; resuming drops the rows after the checkpoint."""

    def __init__(self, folder: Path, history: Sequence[Mapping[str, Any]], tensorboard: bool) -> None:
        self._path = folder / "log.csv"
        buffer = io.StringIO(newline="")
        writer = csv.DictWriter(buffer, COLUMNS)
        writer.writeheader()
        writer.writerows(history)
        write_whole(self._path, buffer.getvalue())
        self._stage, self._steps_before, self._last_step = "", 0, 0
        self._board = _summary_writer(folder / "tensorboard") if tensorboard else None
        for row in history:
            self._show(row)

    def write(self, row: Mapping[str, Any]) -> None:
        with self._path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, COLUMNS).writerow(row)
        self._show(row)

    def _show(self, row: Mapping[str, Any]) -> None:
        """On TensorBoard, against the steps since the run began; the rows count those of their stage."""
        if row["stage"] != self._stage:
            self._stage, self._steps_before = row["stage"], self._steps_before + self._last_step
        self._last_step = row["step"]
        if self._board is not None:
            for name, value in row.items():
                if isinstance(value, float):
                    self._board.add_scalar(f"{row['stage']}/{name}", value, self._steps_before + row["step"])

    def close(self) -> None:
        if self._board is not None:
            self._board.close()


def _summary_writer(folder: Path) -> Any:
    """A writer into an empty folder: the history is written again, nothing of a stopped run stays."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:  # the log stays complete without it
        return None
    shutil.rmtree(folder, ignore_errors=True)
    return SummaryWriter(str(folder))


def read_log(checkpoint: Path) -> list[dict[str, str]]:
    """The rows of log.csv of the run that a checkpoint belongs to; none where there is no such file."""
    path = checkpoint.resolve().parent / "log.csv"
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        # a kill may have cut off the last row
        return [
            row for row in csv.DictReader(file) if row.get("stage") and (row.get("epoch") or "").isdigit()
        ]
