"""The command line: ``fastae train | encode | evaluate | plot | bench | tune | info``.

Exit codes: 0; 2 for a bad argument or file; 1 for everything else.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from ._version import __version__
from .bench.command import BenchConfig, bench
from .figures import as_json, layer_cells, summary_cells
from .files import write_whole
from .ops.backend import backend_of, requested_backend
from .plot_command import PlotConfig, plot
from .train.config import TrainConfig
from .tuning import TuneConfig, measured_choices, tune

if TYPE_CHECKING:
    import torch

    from .train.checkpoint import Checkpoint
    from .train.data import Dataset


@dataclass(frozen=True)
class EncodeConfig:
    """Write the codes of a data set to a file.

    Attributes:
        run: a run's folder, or one checkpoint's.
        out: the file to write: .npy, or .safetensors (with the labels as "y").
        data: a data set's name or a path; by default the one the run was trained on.
        test: encode the test part instead of the training part.
        depth: after how many layers to stop; by default all.
    """

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    out: str
    data: str | None = None
    test: bool = False
    depth: int | None = None


@dataclass(frozen=True)
class EvaluateConfig:
    """Measure a trained stack on the test part of a data set, or on its only part.

    Attributes:
        run: a run's folder, or one checkpoint's.
        data: a data set's name or a path; by default the one the run was trained on.
        probe: fit a linear probe on the codes of the training part, where there are labels.
        json: print JSON instead of a table.
    """

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    data: str | None = None
    probe: bool = True
    json: bool = False


@dataclass(frozen=True)
class InfoConfig:
    """Show versions, devices, and which backend each operator would use, and why.

    Attributes:
        json: print JSON instead of tables.
    """

    json: bool = False


_Command = (
    Annotated[TrainConfig, tyro.conf.subcommand("train", description="Train a stack of autoencoders.")]
    | Annotated[EncodeConfig, tyro.conf.subcommand("encode")]
    | Annotated[EvaluateConfig, tyro.conf.subcommand("evaluate")]
    | Annotated[PlotConfig, tyro.conf.subcommand("plot")]
    | Annotated[BenchConfig, tyro.conf.subcommand("bench"), tyro.conf.FlagCreatePairsOff]
    | Annotated[TuneConfig, tyro.conf.subcommand("tune")]
    | Annotated[InfoConfig, tyro.conf.subcommand("info")]
)


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    console, errors = Console(), Console(stderr=True, soft_wrap=True)

    def fail(message: str, code: int) -> int:
        errors.print("fastae:", style="bold red", end=" ")
        errors.print(message, markup=False, highlight=False)
        return code

    try:
        requested_backend()
        command: Any = tyro.cli(
            _Command,  # pyright: ignore[reportArgumentType]
            prog="fastae",
            args=argv,
            description=f"Fast autoencoders on PyTorch, version {__version__}.",
        )
        _COMMANDS[type(command)](command, console)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 2
    except KeyboardInterrupt as interrupt:
        how = "".join(f"; it goes on with: fastae train --resume --out {run}" for run in interrupt.args)
        return fail(f"interrupted{how}", 1)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nobody reads on: no second complaint
        return 1
    except (ValueError, TypeError, OSError) as error:
        return fail(str(error), 2)
    except (RuntimeError, MemoryError) as error:
        return fail(str(error) or "out of memory", 1)
    return 0


# --- commands -------------------------------------------------------------------------------------------


def _train(config: TrainConfig, console: Console) -> None:
    from .train.engine import train
    from .train.evaluation import evaluate
    from .train.reporting import RichProgress

    result = train(config, progress=RichProgress())
    test = result.dataset.test
    rows, part = (test, "test") if test is not None else (result.dataset.train, "only")
    probe = result.dataset.train if test is not None else None
    figures = evaluate(result.stack, rows, classifier=result.classifier, probe_rows=probe)
    write_whole(result.path / "evaluation.json", as_json(figures) + "\n")
    _print_figures(console, figures, f"{result.dataset.name}, {part} part")
    console.print(f"Run: {result.path} (log.csv, evaluation.json, the last checkpoint)", highlight=False)


def _encode(config: EncodeConfig, console: Console) -> None:
    import numpy as np

    from .train.evaluation import encode_rows

    out = Path(config.out)
    if out.suffix not in (".npy", ".safetensors"):
        raise ValueError(f"out: {config.out!r} must end in .npy or .safetensors")
    checkpoint, dataset = _load(config.run, config.data)
    depth = len(checkpoint.stack.layers)
    if config.depth is not None and not 1 <= config.depth <= depth:
        raise ValueError(f"depth: must be in 1..{depth}, got {config.depth}")
    rows = dataset.train
    if config.test:
        if dataset.test is None:
            raise ValueError(f"test: {dataset.name} has no test part")
        rows = dataset.test
    codes = encode_rows(checkpoint.stack, rows, config.depth)
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".tmp-{out.name}")
    try:
        if out.suffix == ".npy":
            np.save(temporary.with_suffix(".npy"), codes)
        else:
            from safetensors.numpy import save

            arrays = {"x": codes} if rows.labels is None else {"x": codes, "y": rows.labels}
            temporary.write_bytes(save(arrays))
        os.replace(temporary, out)
    finally:
        temporary.unlink(missing_ok=True)
    console.print(f"{out}: codes {codes.shape[0]} x {codes.shape[1]}", highlight=False)


def _evaluate(config: EvaluateConfig, console: Console) -> None:
    from .train.evaluation import evaluate

    checkpoint, dataset = _load(config.run, config.data)
    rows, part = (dataset.test, "test") if dataset.test is not None else (dataset.train, "only")
    probe = dataset.train if config.probe and dataset.test is not None else None
    figures = evaluate(checkpoint.stack, rows, classifier=checkpoint.classifier, probe_rows=probe)
    if config.json:
        print(as_json(figures))
    else:
        _print_figures(console, figures, f"{dataset.name}, {part} part")


def _plot(config: PlotConfig, console: Console) -> None:
    checkpoint, dataset = _load(config.run, config.data)
    *files, page = plot(config, checkpoint, dataset)
    message = f"{page}: one page with all of it; {len(files)} files of pictures"
    console.print(message, highlight=False, soft_wrap=True)


def _info(config: InfoConfig, console: Console) -> None:
    import torch

    from . import ops
    from .train.graph import capture_on

    devices = [torch.device("cpu"), *(torch.device("cuda", i) for i in range(torch.cuda.device_count()))]
    names = {
        str(d): platform.processor() or platform.machine()
        if d.type == "cpu"
        else torch.cuda.get_device_name(d)
        for d in devices
    }
    info = {
        "versions": {
            "fastae": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "triton": _version_of("triton"),
            "numpy": _version_of("numpy"),
            "safetensors": _version_of("safetensors"),
        },
        "threads": torch.get_num_threads(),
        "devices": names,
        "FASTAE_BACKEND": requested_backend(),
        "training_step": {str(d): capture_on(d)[1] for d in devices},
        "operators": {str(d): {op: _backend(op, d) for op in ops.NAMES} for d in devices},
        "measured_choices": measured_choices(devices),
    }
    if config.json:
        print(json.dumps(info, indent=2))
        return
    table = Table("", "", show_header=False, box=None)
    for name, version in info["versions"].items():
        table.add_row(name, version)
    table.add_row("threads", str(info["threads"]))
    table.add_row("FASTAE_BACKEND", info["FASTAE_BACKEND"])
    for device, name in names.items():
        table.add_row(device, name)
        table.add_row("  training step", info["training_step"][device])
    for device, tables in info["measured_choices"].items():
        hold = ", ".join(f"{t['hold']} {place}" for place, t in tables.items())
        table.add_row(f"measured choices, {device}", hold)
    console.print(table, highlight=False)
    for device, operators in info["operators"].items():
        table = Table(
            "operator", "backend", "why", box=SIMPLE, title=f"operators on {device}", title_justify="left"
        )
        for op, (backend, why) in operators.items():
            table.add_row(op, backend, why)
        console.print(table, highlight=False)


def _backend(op: str, device: torch.device) -> list[str]:
    try:
        return list(backend_of(op, device))
    except ValueError as error:  # what a call would raise
        return ["none", str(error)]


_COMMANDS = {
    TrainConfig: _train,
    EncodeConfig: _encode,
    EvaluateConfig: _evaluate,
    PlotConfig: _plot,
    BenchConfig: bench,
    TuneConfig: tune,
    InfoConfig: _info,
}


# --- helpers --------------------------------------------------------------------------------------------


def _load(run: str, data: str | None) -> tuple[Checkpoint, Dataset]:
    """A checkpoint and data scaled as its training data were."""
    from .train.checkpoint import load_checkpoint
    from .train.data import load_dataset

    checkpoint = load_checkpoint(run)
    own = data is None
    name = checkpoint.config.get("data") if own else data
    if not isinstance(name, str):
        raise ValueError(f"data: {checkpoint.path} does not say what it was trained on; name the data")
    test = checkpoint.config.get("test") if own else None
    dataset = load_dataset(name, test=test, scaling=checkpoint.scaling)
    if dataset.width != checkpoint.stack.sizes[0]:
        raise ValueError(
            f"data: {dataset.name} has rows of {dataset.width}, the run takes {checkpoint.stack.sizes[0]}"
        )
    return checkpoint, dataset


def _print_figures(console: Console, figures: dict[str, Any], title: str) -> None:
    summary = Table(
        "", "", show_header=False, box=SIMPLE, title=f"{title}: {figures['rows']} rows", title_justify="left"
    )
    for cells in summary_cells(figures):
        summary.add_row(*cells)
    console.print(summary, highlight=False)
    columns = ("layer", "units", "loss", "penalty", "slope²", "norm²", "saturated", "dead")
    layers = Table(*columns, box=SIMPLE)
    for cells in layer_cells(figures["layers"]):
        layers.add_row(*(cells[column] for column in columns))
    console.print(layers, highlight=False)


def _version_of(package: str) -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
