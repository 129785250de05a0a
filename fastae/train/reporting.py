"""Reports of a run while it trains: a display, a CSV file, and TensorBoard's event files."""

from __future__ import annotations

import csv
import io
import os
import shutil
import socket
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from ..files import write_whole
from ..objective import AutoencoderLoss
from ..optional import require

if TYPE_CHECKING:
    from typing_extensions import Self

COLUMNS = (
    "stage",
    "epoch",
    "step",
    "seconds",
    "rows_per_second",
    "lr",
    *(f"{part}_{term}" for part in ("train", "validation") for term in (*AutoencoderLoss._fields, "error")),
    "validation_least",
)
"""Columns of log.csv, one row per epoch. The terms are those of fastae.AutoencoderLoss, means over rows;
error is the share of rows that the classifier gets wrong; lr is the rate of the next step; validation_least
is the least value that the reconstruction loss of any model can have: for bce, the entropy of the rows."""


class Progress(Protocol):
    """A display of training, told of stages in the order in which they run."""

    def __enter__(self) -> Progress: ...

    def __exit__(self, *error: Any) -> None: ...

    def start(self, stage: str, steps: int, done: int, epochs: int) -> None:
        """A stage of ``steps`` steps in ``epochs`` epochs begins, or goes on after ``done`` steps."""
        ...

    def update(self, done: int, terms: Mapping[str, float], rows_per_second: float) -> None:
        """Means of the loss terms since the epoch began, after ``done`` steps of the stage."""
        ...

    def end_epoch(self, row: Mapping[str, Any]) -> None:
        """An epoch has ended; ``row`` is its row of the log."""
        ...

    def finish(self) -> None:
        """The stage has ended."""
        ...


class Silent:
    """No display."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None:
        pass

    def start(self, stage: str, steps: int, done: int, epochs: int) -> None:
        pass

    def update(self, done: int, terms: Mapping[str, float], rows_per_second: float) -> None:
        pass

    def end_epoch(self, row: Mapping[str, Any]) -> None:
        pass

    def finish(self) -> None:
        pass


class _Display(Silent):
    """Keeps where the current stage stands, and puts it into words."""

    def start(self, stage: str, steps: int, done: int, epochs: int) -> None:
        self._stage, self._steps, self._epochs = stage, steps, epochs
        self._began, self._first, self._done = time.monotonic(), done, done
        self._row: Mapping[str, Any] | None = None
        self._terms: Mapping[str, float] = {}
        self._rows_per_second = 0.0

    def update(self, done: int, terms: Mapping[str, float], rows_per_second: float) -> None:
        self._done, self._terms, self._rows_per_second = done, terms, rows_per_second

    def end_epoch(self, row: Mapping[str, Any]) -> None:
        self._row = row

    def _position(self) -> list[str]:
        """Parts of a line that says where the stage stands, the most important first."""
        name = f"{self._stage:11}"
        if not self._done:
            return [name]
        epoch = min(-(-self._done * self._epochs // self._steps), self._epochs)
        parts = [name, f"epoch {epoch:{len(str(self._epochs))}}/{self._epochs}", *_figures("", self._terms)]
        spent, steps = time.monotonic() - self._began, self._done - self._first
        if steps and self._done < self._steps:
            parts.append(f"{duration(spent * (self._steps - self._done) / steps)} left")
        return [*parts, f"{self._rows_per_second:,.0f} rows/s"]

    def _end(self) -> list[str]:
        """Parts of a line that says how the last epoch ended."""
        if self._row is None:
            return [f"{self._stage:11}", "nothing to do"]
        row, width = self._row, len(str(self._epochs))
        parts = [f"{self._stage:11}", f"epoch {row['epoch']:{width}}/{self._epochs}"]
        parts += [*_figures("train_", row), *_figures("validation_", row)]
        return [*parts, f"{row['rows_per_second']:,.0f} rows/s", duration(row["seconds"])]


class LineProgress(_Display):
    """A line per epoch, for output that is no terminal.

    Short epochs share a line: at most one in two seconds, beside a stage's first and last. Within an epoch
    there is a line per minute.

    Args:
        file: where to write; standard output by default.
    """

    _BETWEEN_EPOCHS, _WITHIN_EPOCH = 2.0, 60.0

    def __init__(self, file: TextIO | None = None) -> None:
        self._file = file

    def start(self, stage: str, steps: int, done: int, epochs: int) -> None:
        super().start(stage, steps, done, epochs)
        self._written_at = self._began
        self._written: Mapping[str, Any] | None = None

    def update(self, done: int, terms: Mapping[str, float], rows_per_second: float) -> None:
        super().update(done, terms, rows_per_second)
        if time.monotonic() - self._written_at >= self._WITHIN_EPOCH:
            self._write(self._position())

    def end_epoch(self, row: Mapping[str, Any]) -> None:
        first = self._row is None
        super().end_epoch(row)
        if first or time.monotonic() - self._written_at >= self._BETWEEN_EPOCHS:
            self._write_end()

    def finish(self) -> None:
        if self._row is None or self._written is not self._row:
            self._write_end()

    def _write_end(self) -> None:
        self._written = self._row
        self._write(self._end())

    def _write(self, parts: list[str]) -> None:
        self._written_at = time.monotonic()
        print("  ".join(parts), file=self._file or sys.stdout, flush=True)


class RichProgress(_Display):
    """A row at the bottom of a terminal for the current stage, and a line for each that has ended.

    Needs the package rich (extra ``train``).

    Args:
        console: a ``rich.console.Console``; one for standard output by default.
    """

    _ECHO = 8  # columns left free: ^C is echoed after the row, and must not break it in two
    _BAR = (12, 32)  # the least and the largest width

    def __init__(self, console: Any = None) -> None:
        live = require("rich.live", "progress")
        self._console = console or require("rich.console", "progress").Console()
        self._active = False
        # refreshed by hand: a thread of its own would draw over what a signal's handler prints
        self._live = live.Live(
            console=self._console, auto_refresh=False, transient=True, get_renderable=self._row_of_stage
        )

    def __enter__(self) -> Self:
        self._live.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._live.__exit__(*error)
        if self._active:  # stopped within a stage
            self._print(self._position())

    def start(self, stage: str, steps: int, done: int, epochs: int) -> None:
        super().start(stage, steps, done, epochs)
        self._active = True
        self._live.refresh()

    def update(self, done: int, terms: Mapping[str, float], rows_per_second: float) -> None:
        super().update(done, terms, rows_per_second)
        self._live.refresh()

    def finish(self) -> None:
        self._active = False
        self._live.refresh()
        self._print(self._end())

    def _print(self, parts: list[str]) -> None:
        """A line that stays, in several where the terminal is narrow."""
        lines, (name, *rest) = [""], parts
        for part in rest:
            if lines[-1] and len(f"{name}{lines[-1]}  {part}") > self._console.width:
                lines.append("")
            lines[-1] += f"  {part}"
        lines = [name + lines[0], *(" " * len(name) + line for line in lines[1:])]
        self._console.print("\n".join(lines), markup=False, highlight=False)

    def _row_of_stage(self) -> Any:
        """As many parts as the terminal is wide for, and a bar where there is room."""
        text = require("rich.text", "progress").Text
        if not self._active:
            return text("")
        parts, width = self._position(), self._console.width - self._ECHO
        while len(parts) > 1 and len("  ".join(parts)) > width:
            parts.pop()
        room = min(width - len("  ".join(parts)) - 2, self._BAR[1])
        if room < self._BAR[0]:
            return text("  ".join(parts), no_wrap=True, overflow="crop")
        full = room * self._done // max(self._steps, 1)
        mark = "-" if self._console.options.ascii_only else "\u2501"
        bar = text(f"{parts[0]}  ").append(mark * full, "cyan").append(mark * (room - full), "bright_black")
        return bar.append("".join(f"  {part}" for part in parts[1:]))


def _figures(prefix: str, values: Mapping[str, Any]) -> list[str]:
    """The loss and the share of wrong rows among an epoch's means."""
    kind = "validation " if prefix == "validation_" else ""
    found = []
    if (total := values.get(f"{prefix}total")) is not None:
        least = values.get(f"{prefix}least") or 0.0
        above = f" (least {least:.5g})" if least > 0.01 * total else ""
        found.append(f"{kind}loss {total:.5g}{above}")
    if (error := values.get(f"{prefix}error")) is not None:
        found.append(f"{kind}error {100 * error:.2f} %")
    return found


def duration(seconds: float) -> str:
    """0.4 s, 59 s, 3:05 or 2:03:05."""
    if seconds < 59.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class Log:
    """One row per epoch in ``log.csv`` and TensorBoard; resuming drops the rows after the checkpoint."""

    def __init__(self, folder: Path, history: Sequence[Mapping[str, Any]], tensorboard: bool) -> None:
        self._path = folder / "log.csv"
        buffer = io.StringIO(newline="")
        writer = csv.DictWriter(buffer, COLUMNS)
        writer.writeheader()
        writer.writerows(history)
        write_whole(self._path, buffer.getvalue())
        self._stage, self._steps_before, self._last_step = "", 0, 0
        self._board = _Board(folder / "tensorboard") if tensorboard else None
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
            values = {f"{row['stage']}/{name}": v for name, v in row.items() if isinstance(v, float)}
            self._board.write(values, self._steps_before + row["step"])

    def close(self) -> None:
        if self._board is not None:
            self._board.close()


class _Board:
    """An event file for TensorBoard in a folder of its own, where TensorBoard is installed.

    The folder is emptied first: the history is written again, and nothing of a stopped run stays. An event
    file that cannot be written ends no run: a warning says so once, and log.csv stays complete. TensorBoard's
    own writer fails in a thread of its own, which prints a traceback.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._file = folder, None
        try:
            from tensorboard.compat.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
            from tensorboard.summary.writer.record_writer import RecordWriter
            from torch.utils.tensorboard.summary import scalar
        except ImportError:
            return
        self._event, self._scalar = Event, scalar
        shutil.rmtree(folder, ignore_errors=True)
        with self._failing_once():
            folder.mkdir(parents=True, exist_ok=True)
            name = f"events.out.tfevents.{int(time.time()):010}.{socket.gethostname()}.{os.getpid()}"
            self._file = (folder / name).open("wb")
            self._records = RecordWriter(self._file)
            self._write(Event(wall_time=time.time(), file_version="brain.Event:2"))

    def write(self, values: Mapping[str, float], step: int) -> None:
        """Append one value per name, and flush them to the file."""
        if self._file is None:
            return
        with self._failing_once():
            for name, value in values.items():
                self._write(self._event(wall_time=time.time(), step=step, summary=self._scalar(name, value)))
            self._file.flush()

    def close(self) -> None:
        if self._file is not None:
            with self._failing_once():
                self._file.close()

    def _write(self, event: Any) -> None:
        self._records.write(event.SerializeToString())

    @contextmanager
    def _failing_once(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if self._file is not None:
                with suppress(OSError):  # what is buffered is written again, and fails again
                    self._file.close()
            self._file = None
            reason = f"{self._folder} could not be written to ({error.strerror or error})"
            warnings.warn(f"tensorboard: {reason}; the run goes on without it", stacklevel=2)


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
