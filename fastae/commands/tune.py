"""``fastae tune``: measure which plans are fastest on this machine's GPU, once, before training."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ..bench.problems import Shape
from ..console import Console, print_table
from ..files import check_writable

if TYPE_CHECKING:
    from fastae_kernels.tools.tune import Outcome

Operator = Literal["encode", "decode_loss", "code_grad", "weight_grad", "corrupt"]
Precision = Literal["float32", "tf32", "float16", "bfloat16"]

_INTERPRETED_WORK = 1 << 22  # M D H beyond which the interpreter takes minutes


@dataclass(frozen=True)
class Config:
    """Measure the operators' plans on this machine's GPU and keep the fastest in the user's cache.

    Attributes:
        shapes: Rows, features and units of each layer to tune for, as in 256x784x1000.
        dtypes: Types of the products; tf32 is float32 with torch.set_float32_matmul_precision("high").
        operators: Operators to tune. By default all that a training step runs on.
        device: Device of torch to measure on; auto takes the first GPU.
        again: Measure what was measured before with these versions, too.
        json: Print JSON instead of a table.
    """

    shapes: tuple[Shape, ...] = (
        Shape(256, 784, 1000),
        Shape(1024, 2048, 4096),
        Shape(8192, 4096, 16384),
    )
    dtypes: tuple[Precision, ...] = ("bfloat16",)
    operators: tuple[Operator, ...] = ("encode", "decode_loss", "code_grad", "weight_grad", "corrupt")
    device: str = "auto"
    again: bool = False
    json: bool = False

    def __post_init__(self) -> None:
        for name in ("shapes", "dtypes", "operators"):
            if not getattr(self, name):
                raise ValueError(f"{name}: expected at least one, got none")


def run(config: Config, console: Console) -> None:
    """Run the command.

    Raises:
        ValueError: there is no device that kernels can run on, or no place to keep what is found.
    """
    device = _device(config.device)
    from fastae_kernels.launch import INTERPRETED, target_of
    from fastae_kernels.plan import choices
    from fastae_kernels.tools import tune as measuring

    if INTERPRETED and any(m * d * h > _INTERPRETED_WORK for m, d, h in config.shapes):
        raise ValueError(
            f"shapes: under TRITON_INTERPRET=1 M x D x H must be at most {_INTERPRETED_WORK}: "
            "the interpreter is for tests, and its times say nothing of a GPU"
        )
    if "bfloat16" in config.dtypes and INTERPRETED:
        raise ValueError("dtypes: bfloat16 is wrong in Triton's interpreter; take float32 or float16")
    name = target_of(device).device
    path = choices.paths(name)["cache"]
    _check_writable(path.parent)
    cases = measuring.cases(config.shapes, config.dtypes, config.operators)
    outcomes: list[Outcome] = []
    errors = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(complete_style="cyan", finished_style="green"),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as progress:
        task = progress.add_task(f"tuning on {name}", total=len(cases))
        for outcome in measuring.tune(cases, device, again=config.again):
            outcomes.append(outcome)
            progress.update(task, advance=1, description=f"{outcome.case.operator} {outcome.case.dtype}")
    if config.json:
        rows = [_row(outcome) for outcome in outcomes]
        json.dump({"device": name, "path": str(path), "results": rows}, sys.stdout, indent=2)
        print()
    else:
        _print(console, outcomes, name)
        console.print(f"Choices: {path}")


def _device(name: str) -> torch.device:
    if importlib.util.find_spec("triton") is None:
        raise ValueError("device: Triton is not installed, and tuning measures its kernels")
    from fastae_kernels.launch import INTERPRETED, problem

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
        if name == "cpu" and not INTERPRETED:
            raise ValueError(
                "device: no GPU was found (torch.cuda.is_available() is False in torch "
                f"{torch.__version__}); kernels are tuned on a CUDA GPU of compute capability 8.0 or more, "
                "or a ROCm GPU"
            )
    try:
        device = torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device: {name!r} cannot be used: {str(error).splitlines()[0]}") from error
    reason = problem(device)
    if reason is not None:
        raise ValueError(f"device: kernels cannot be tuned on {name!r}: {reason}")
    return device


def _check_writable(folder: Path) -> None:
    """Before anything is measured, which would be lost."""
    try:
        check_writable(folder)
    except OSError as error:
        raise ValueError(f"FASTAE_CACHE: cannot write to {folder}: {error.strerror}") from error


def _verdict(outcome: Outcome) -> str:
    if outcome.skipped:
        return "kept from before"
    if outcome.chosen is None:
        return "none ran"
    if outcome.chosen == outcome.default:
        return "as by default"
    return "chosen"


def _row(outcome: Outcome) -> dict[str, Any]:
    """An outcome as JSON."""

    case, key = outcome.case, outcome.key
    return {
        "operator": case.operator,
        "dtype": case.dtype,
        "shape": [case.M, case.D, case.H],
        "product": [key.M, key.N, key.K],
        "default": str(outcome.default),
        "chosen": None if outcome.chosen is None else str(outcome.chosen),
        "verdict": _verdict(outcome),
        "seconds": outcome.seconds,
        "default_seconds": outcome.default_seconds,
        "gain": outcome.gain,
        "tried": outcome.tried,
        "dropped": [[str(plan), reason] for plan, reason in outcome.dropped],
    }


def _print(console: Console, outcomes: list[Outcome], device: str) -> None:
    cells, dropped = [], []
    for outcome, row in zip(outcomes, map(_row, outcomes), strict=True):
        seconds = outcome.seconds
        operator, product = f"{row['operator']} {row['dtype']}", "x".join(map(str, row["product"]))
        plan = row["verdict"] if outcome.chosen in (None, outcome.default) else row["chosen"]
        gain = f"{100 * outcome.gain:.1f} %" if outcome.gain else ""
        cells.append([operator, product, plan, "" if seconds is None else f"{1e6 * seconds:.1f}", gain])
        dropped += [f"dropped: {operator} {product}, {plan}: {reason}" for plan, reason in row["dropped"]]
    header = ("operator", "MxNxK", "plan", "\u00b5s", "gain")
    print_table(console, cells, header, title=f"plans on {device}", text=(0, 1, 2))
    for line in dropped:
        console.print(line)
