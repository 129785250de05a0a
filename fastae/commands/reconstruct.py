"""``fastae reconstruct``: reconstructions of rows as a file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from ..console import Console
from ..run import load
from .output import check_suffix, write_array


@dataclass(frozen=True)
class Config:
    """Write the reconstruction of each row in the data's own units, as for denoising.

    Attributes:
        run: a run's folder, or one checkpoint's.
        out: the file to write: .npy, .npz, .csv or .parquet.
        data: a data set's name or a path; by default the one the run was trained on.
        test: reconstruct the test part instead of the training part.
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
    dataset = trained.load_data(config.data)
    array = trained.reconstruct_rows(dataset.part(config.test))
    names = list(dataset.feature_names or [f"feature {i}" for i in range(array.shape[1])])
    write_array(Path(config.out), array, names)
    console.print(f"{config.out}: reconstructions {array.shape[0]} x {array.shape[1]}")
