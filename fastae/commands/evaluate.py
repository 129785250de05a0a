"""``fastae evaluate``: the figures of a trained stack on a data set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from ..console import Console
from ..run import load
from ..train import evaluation
from .tables import as_json, print_figures


@dataclass(frozen=True)
class Config:
    """Measure a trained stack on the test part of a data set, else on the rows that the run held out.

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


def run(config: Config, console: Console) -> None:
    """Run the command."""
    trained = load(config.run)
    checkpoint, dataset = trained.checkpoint, trained.load_data(config.data)
    rows, part, training = checkpoint.parts(dataset, own=config.data is None)
    figures = evaluation.evaluate(
        checkpoint.stack,
        rows,
        classifier=checkpoint.classifier,
        probe_rows=training if config.probe else None,
        training=training,
    )
    if config.json:
        print(as_json(figures))
    else:
        print_figures(console, figures, f"{dataset.name}, {part}")
