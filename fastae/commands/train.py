"""``fastae train``: a run from data to checkpoints and figures."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, replace
from typing import Any

import tyro

from ..console import Console
from ..files import write_whole
from ..train import evaluation
from ..train.config import TrainConfig as Config
from ..train.engine import train
from ..train.reporting import LineProgress, RichProgress
from .tables import as_json, print_figures

_WIDTHS = re.compile(r"\d+(,\d+)+")
_ABOUT = """\
Train a stack of autoencoders.

--epochs, --lr, --batch-size, --optimizer and --patience set every stage; an option of one stage, as
--pretrain.epochs, goes before them. Options of layers take one value, or one value per layer.

  fastae train --data digits --sizes 64 256 128 --classifier --out runs/first"""


@dataclass(frozen=True)
class EveryStage:
    """Settings of every stage; an option of one stage, as --pretrain.epochs, goes before them.

    Attributes:
        epochs: Passes over the training rows.
        lr: Learning rate.
        batch_size: Rows per step.
        optimizer: A name in torch.optim.
        patience: Epochs without a better validation loss before a stage stops.
    """

    epochs: int | None = None
    lr: float | None = None
    batch_size: int | None = None
    optimizer: str | None = None
    patience: int | None = None


def parse(args: list[str], **options: Any) -> Config:
    """The configuration of a command line; ``options`` are those of ``tyro.cli``."""
    words = [part for word in args for part in (word.split(",") if _WIDTHS.fullmatch(word) else [word])]
    every, rest = tyro.cli(EveryStage, args=words, return_unknown_args=True, add_help=False)
    given = {name: value for name, value in asdict(every).items() if value is not None}
    stages = {name: replace(stage, **given) for name, stage in Config().stages.items()}
    return tyro.cli(Config, args=rest, default=replace(Config(), **stages), description=_ABOUT, **options)


def run(config: Config, console: Console) -> None:
    """Run the command."""
    interactive = console.is_terminal and not console.is_dumb_terminal
    progress = RichProgress(console) if interactive else LineProgress()
    result = train(config, progress=progress, announce=console.print)
    rows, part, training = result.parts
    figures = evaluation.evaluate(
        result.stack, rows, classifier=result.classifier, probe_rows=training, training=training
    )
    write_whole(result.path / "evaluation.json", as_json(figures) + "\n")
    print_figures(console, figures, f"{result.dataset.name}, {part}")
    console.print(f"Run: {result.path} (log.csv, evaluation.json, the last checkpoint)")
