"""``fastae train``: a run from data to checkpoints and figures."""

from __future__ import annotations

from ..console import Console
from ..files import write_whole
from ..train import evaluation
from ..train.config import TrainConfig as Config
from ..train.engine import train
from ..train.reporting import LineProgress, RichProgress
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
    print_figures(console, figures, f"{result.dataset.origin}, {part}")
    console.print(f"Run: {result.path} (log.csv, evaluation.json, the last checkpoint)")
