"""``fastae train``: a run from data to checkpoints and figures."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, fields

from ..checks import check_whole
from ..console import Console, tolerate_encodings
from ..distributed import is_launched, leads, silenced
from ..distributed.launcher import launch
from ..files import write_whole
from ..interruption import Interrupted
from ..train import evaluation
from ..train.config import TrainConfig
from ..train.engine import TrainResult, train
from ..train.folder import folder_of_launch
from ..train.reporting import LineProgress, RichProgress
from .options import given_options
from .tables import as_json, print_figures

ABOUT = "Train a stack of autoencoders, and perhaps a classifier on top of it."
EXAMPLES = (
    "fastae train digits --hidden 256 16 --classifier",
    "fastae train my.csv --label species --hidden 32 8 --out runs/mine",
    "fastae train --resume --out runs/mine",
)
ESSENTIAL = {
    "data": ("data", "label", "labels", "drop", "test_fraction"),
    "layers, one value for all or one per layer": (
        "hidden",
        "activation",
        "loss",
        "corruption",
        "contractive",
        "l1",
        "classifier",
    ),
    "training": ("epochs", "lr", "batch_size", "optimizer", "patience"),
    "run": ("out", "resume", "device"),
}


@dataclass(frozen=True)
class Config(TrainConfig):
    """A run, and the processes that train it.

    Attributes:
        processes: Processes that train together as one would, all on this machine; torchrun starts more.
        restarts: Times that they are started again where one has died; the run goes on from its checkpoint.
    """

    processes: int = 1
    restarts: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("processes:", self.processes)
        check_whole("restarts:", self.restarts, 0)


def run(config: Config, console: Console) -> None:
    """Run the command."""
    settings = TrainConfig(**{f.name: getattr(config, f.name) for f in fields(TrainConfig)})
    given = given_options(config)
    if config.processes == 1 or is_launched():
        _train(settings, given)
        return
    name = uuid.uuid4().hex
    try:
        launch(_train, (settings, given), config.processes, config.restarts, name)
    except Interrupted as error:
        raise Interrupted(error.number, error.run or folder_of_launch(config.out, name)) from None


def _train(config: TrainConfig, given: frozenset[str]) -> None:
    """Train and evaluate, as one process of a run or as its only one."""
    tolerate_encodings()
    console = Console()
    interactive = console.is_terminal and not console.is_dumb_terminal
    progress = RichProgress(console) if interactive else LineProgress()
    result = train(config, progress=progress, announce=console.print, given=given)
    if not leads():
        return
    try:
        _evaluate(result, console)
    except Exception as error:  # the other processes have ended well, and none is to be started again
        raise silenced(error, elsewhere=False) from None


def _evaluate(result: TrainResult, console: Console) -> None:
    """Write and print the figures of a run."""
    rows, part, training = result.parts
    figures = evaluation.evaluate(
        result.stack, rows, classifier=result.classifier, probe_rows=training, training=training
    )
    write_whole(result.path / "evaluation.json", as_json(figures) + "\n")
    print_figures(console, figures, f"{result.dataset.origin}, {part}")
    console.print(f"Run: {result.path} (log.csv, evaluation.json, the last checkpoint)")
