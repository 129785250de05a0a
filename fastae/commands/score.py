"""``fastae score``: anomaly scores of rows as a file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..console import Console
from ..run import load
from .output import RowsConfig, write_array


@dataclass(frozen=True)
class Config(RowsConfig):
    """Write an anomaly score per row: the reconstruction error above the least there is."""


def run(config: Config, console: Console) -> None:
    """Run the command."""
    trained = load(config.run)
    rows, origin, _ = config.read(trained)
    scores = trained.score_rows(rows)
    write_array(Path(config.out), scores[:, None], ["score"])
    worst = ", ".join(str(row) for row in np.argsort(scores)[::-1][:5])
    found = f"scores of {origin}: {len(scores)} rows"
    console.print(f"{config.out}: {found}; the highest are those of rows {worst}")
