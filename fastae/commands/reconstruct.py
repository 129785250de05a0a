"""``fastae reconstruct``: reconstructions of rows as a file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from ..console import Console
from ..run import load
from ..train.config import POSITIONAL
from ..train.evaluation import PartName
from .output import check_suffix, write_array


@dataclass(frozen=True)
class Config:
    """Write the reconstruction of each row in the data's own units, as for denoising.

    Attributes:
        run: Folder of a run, or of one of its checkpoints.
        out: File to write: .npy, .npz, .csv or .parquet.
        data: A data set, a file or a folder. By default the data that the run was trained on.
        part: Part of the data to reconstruct; train is all rows that are not the test part.
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
    array = trained.reconstruct_rows(rows)
    names = list(dataset.feature_names or [f"feature {i}" for i in range(array.shape[1])])
    write_array(Path(config.out), array, names)
    console.print(
        f"{config.out}: reconstructions of {dataset.origin}, {part}: {array.shape[0]} x {array.shape[1]}"
    )
