"""``fastae evaluate``: the figures of a trained stack on a data set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from ..console import Console
from ..run import load
from ..train import evaluation
from ..train.config import POSITIONAL
from ..train.evaluation import PartName
from .tables import as_json, print_figures


@dataclass(frozen=True)
class Config:
    """Measure a trained stack on rows that it was not trained on.

    Attributes:
        run: Folder of a run, or of one of its checkpoints.
        data: A data set, a file or a folder. By default the data that the run was trained on.
        part: Part of the data to measure on; train is all rows that are not the test part. By default the
            test part, or else the rows that the run held out for validation.
        probe: Fit a linear probe on the codes of the training part, where there are labels.
        json: Print JSON instead of a table.
    """

    run: Annotated[str, POSITIONAL]
    data: str | None = None
    part: PartName | None = None
    probe: bool = True
    json: bool = False


def run(config: Config, console: Console) -> None:
    """Run the command."""
    trained = load(config.run)
    checkpoint, dataset = trained.checkpoint, trained.load_data(config.data)
    rows, part, training = checkpoint.parts(dataset, config.data is None, config.part)
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
        print_figures(console, figures, f"{dataset.origin}, {part}")
