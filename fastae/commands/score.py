"""``fastae score``: anomaly scores of rows as a file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np

from ..console import Console
from ..run import load
from ..train.config import POSITIONAL
from ..train.evaluation import PartName
from .output import check_suffix, write_array


@dataclass(frozen=True)
class Config:
    """Write an anomaly score per row: the reconstruction error above the least there is.

    Attributes:
        run: Folder of a run, or of one of its checkpoints.
        out: File to write: .npy, .npz, .csv or .parquet, with one score per row.
        data: A data set, a file or a folder. By default the data that the run was trained on.
        part: Part of the data to score; train is all rows that are not the test part.
    """

    run: Annotated[str, POSITIONAL]
    out: str
    data: str | None = None
    part: PartName = "train"

    def __post_init__(self) -> None:
        check_suffix(self.out)


def run(config: Config, console: Console) -> None:
    """Run the command."""
    trained = load(config.run)
    dataset = trained.load_data(config.data)
    rows, part, _ = trained.checkpoint.parts(dataset, config.data is None, config.part)
    scores = trained.score_rows(rows)
    write_array(Path(config.out), scores[:, None], ["score"])
    worst = ", ".join(str(row) for row in np.argsort(scores)[::-1][:5])
    found = f"scores of {dataset.origin}, {part}: {len(scores)} rows"
    console.print(f"{config.out}: {found}; the highest are those of rows {worst}")
