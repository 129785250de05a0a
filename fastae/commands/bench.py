"""``fastae bench``: measure, or show, or compare what was measured."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..bench import report
from ..bench.problems import Shape
from ..bench.providers import FLOOR
from ..bench.results import CaseResult, Results, describe, open_results
from ..bench.runs import Run
from ..bench.suite import NAMES, SHAPES, Case, Suite
from ..console import Console
from ..devices import resolve_device
from ..files import write_whole
from ..train.data import load_dataset
from ..train.reporting import duration

GroupName = Literal[
    "step",
    "stack",
    "operators",
    "encode",
    "reconstruction_loss",
    "corruption",
    "inference",
    "sparse",
    "sweep",
]
DtypeName = Literal["float32", "bfloat16", "float16", "float64"]

_NAMED = 3  # cases that are listed
_SECONDS = {"quick": 140.0, "full": 3600.0}


class MeasurementError(RuntimeError):
    """A provider computed something wrong, or failed."""


@dataclass(frozen=True)
class Config:
    """Measure fastae beside the bare matrix products, PyTorch, torch.compile and a plain training script.

    Every case is written as soon as it is measured; the same command again skips those. Beside the file of
    results come a Markdown page and pictures.

    Attributes:
        quick: Few shapes, in about three minutes on two cores. This is what happens without --full, too.
        full: More shapes, and torch.compile at each of them.
        groups: Groups of cases to measure. By default all.
        shapes: Rows, features and units, as in 256x784x1000. Sweeps start from the first shape.
        dtype: Types of all tensors. Whole runs with bfloat16 are mixed.
        device: Device of torch to measure on; auto takes an accelerator where there is one.
        data: A data set, a file or a folder to measure whole runs on. Where its rows are 784 wide, the stack
            is 784-1000-1000-1000.
        seconds: Time after which no case starts. By default 140, and 3600 with --full.
        out: File of the results. By default runs/bench/<device>.json.
        compile: Measure torch.compile as well.
        compare: Show how the results in file B differ from those in file A, and measure nothing.
        report: Write page and pictures of a file of results again, and measure nothing.
    """

    quick: bool = False
    full: bool = False
    groups: tuple[GroupName, ...] = NAMES  # pyright: ignore[reportAssignmentType]
    shapes: tuple[Shape, ...] = ()
    dtype: tuple[DtypeName, ...] = ("float32",)
    device: str = "auto"
    data: str = "digits"
    seconds: float | None = None
    out: str | None = None
    compile: bool = True
    compare: tuple[str, str] | None = None
    report: str | None = None

    def __post_init__(self) -> None:
        if self.quick and self.full:
            raise ValueError("quick: cannot be asked for together with full")
        for name in self.groups:
            if name not in NAMES:
                raise ValueError(f"groups: {name!r} is not one of {', '.join(NAMES)}")
        if self.seconds is not None and not self.seconds > 0.0:
            raise ValueError(f"seconds: must be > 0, got {self.seconds!r}")
        if self.compare is not None and self.report is not None:
            raise ValueError("compare: cannot be asked for together with report")


def run(config: Config, console: Console) -> None:
    """Run the command.

    Raises:
        ValueError, OSError: a wrong argument or file.
        MeasurementError: when all is measured and written, but a provider was wrong or failed.
    """
    if config.compare is not None:
        a, b = (Results.load(Path(name)) for name in config.compare)
        report.print_sheets(console, [report.compare(a, b)])
        return
    if config.report is not None:
        path = Path(config.report)
        publish(Results.load(path), path, console)
        return
    device = resolve_device(config.device)
    suite = Suite(device)
    effort = "full" if config.full else "quick"
    shapes = config.shapes or SHAPES[device.type][effort]
    training = training_run(config.data, effort)
    cases = suite.cases(
        config.groups, shapes, config.dtype, training, compiled=config.compile, all_compiled=config.full
    )
    head = describe(device)
    slug = re.sub(r"[^a-z0-9]+", "-", str(head["device"]).lower()).strip("-")
    path = Path(config.out or f"runs/bench/{slug}.json")
    results, remark = open_results(path, head)
    if remark:
        console.print(remark)
    results.save(path)  # what cannot be written should show before anything is measured
    left_out = suite.run(
        cases,
        results,
        config.seconds or _SECONDS[effort],
        save=lambda current: current.save(path),
        listener=ConsoleListener(console, len(cases), config.seconds or _SECONDS[effort]),
        run=training,
    )
    publish(results, path, console)
    if left_out:
        keys = ", ".join(case.key for case in left_out[:_NAMED])
        more = f" and {len(left_out) - _NAMED} more" if len(left_out) > _NAMED else ""
        console.print(f"No time was left for {keys}{more}. The same command again goes on.")
    bad = [f"{case.key}: {name} {how}" for case in results.cases.values() for name, how in case.bad.items()]
    if bad:
        raise MeasurementError("; ".join(bad))


def training_run(data: str, effort: str) -> Run:
    """The whole run that is measured on a data set."""
    dataset = load_dataset(data)
    if dataset.width == 784:
        return Run(dataset, (784, 1000, 1000, 1000), 5 if effort == "full" else 1)
    return Run(dataset, (dataset.width, 4 * dataset.width, 2 * dataset.width), 20)


def publish(results: Results, path: Path, console: Console) -> None:
    """Tables to the console, a Markdown page and pictures beside the file of results."""
    from ..bench import pictures  # matplotlib takes a while, and whoever only asks for help need not wait

    drawn = []
    for name, (caption, image) in pictures.draw(results).items():
        file = path.with_name(f"{path.stem}-{name}.png")
        write_whole(file, image)
        drawn.append((caption, file))
    page = path.with_suffix(".md")
    write_whole(page, report.markdown(results, drawn))
    report.print_sheets(console, report.sheets(results))
    console.print(f"{path}, {page.name} and {len(drawn)} pictures")


class ConsoleListener:
    """One line per case, with the time that is left at most."""

    def __init__(self, console: Console, count: int, seconds: float) -> None:
        self.console, self.count, self.number = console, count, 0
        self.end_at = time.monotonic() + seconds

    def begin(self, case: Case) -> None:
        self.number += 1
        left = duration(max(0.0, self.end_at - time.monotonic()))
        self.console.print(f"[{self.number}/{self.count}, at most {left} left] {case.key}", end=" ")

    def end(self, result: CaseResult) -> None:
        mode = next(reversed(result.times), None)
        ratios = {name: result.ratio(mode, name) for name in result.asked if name != FLOOR} if mode else {}
        said = [f"{name} {ratio:.2f}" for name, ratio in ratios.items() if ratio is not None]
        said += [f"{name} {how}" for name, how in result.bad.items()]
        self.console.print(", ".join(said))

    def skip(self, case: Case, why: str) -> None:
        self.number += 1
        self.console.print(f"[{self.number}/{self.count}] {case.key}: {why}")
