"""``fastae score``: anomaly scores of rows as a file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from ..console import Console
from ..run import load
from .output import check_suffix, write_array


@dataclass(frozen=True)
class Config:
    """Write an anomaly score per row: the reconstruction error above the least there is.

    Attributes:
        run: a run's folder, or one checkpoint's.
        out: the file to write: .npy, .npz, .csv or .parquet, with one score per row.
        data: a data set's name or a path; by default the one the run was trained on.
        test: score the test part instead of the training part.
    """

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    out: str
    data: str | None = None
    test: bool = False

    def __post_init__(self) -> None:
        check_suffix(self.out)


def run(config: Config, console: Console) -> None:
    """Run the command."""
    trained = load(config.run)
    scores = trained.score_rows(trained.load_data(config.data).part(config.test))
    write_array(Path(config.out), scores[:, None], ["score"])
    worst = ", ".join(str(row) for row in np.argsort(scores)[::-1][:5])
    console.print(f"{config.out}: scores of {len(scores)} rows; the highest are those of rows {worst}")
