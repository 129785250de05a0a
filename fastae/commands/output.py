"""Commands that compute an array of the rows of a data set and write it to a file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np

from ..files import write_whole
from ..optional import require
from ..run import Run
from ..train.config import POSITIONAL
from ..train.data import Rows
from ..train.evaluation import PartName

SUFFIXES = (".npy", ".npz", ".csv", ".parquet")


@dataclass(frozen=True)
class RowsConfig:
    """Rows to read and the file to write.

    Attributes:
        run: Folder of a run, or of one of its checkpoints.
        out: File to write: .npy, .npz, .csv or .parquet.
        data: A data set, a file or a folder. By default the data that the run was trained on.
        part: Part of the data; train is all rows that are not the test part.
    """

    run: Annotated[str, POSITIONAL]
    out: str
    data: str | None = None
    part: PartName = "train"

    suffixes: ClassVar[tuple[str, ...]] = SUFFIXES

    def __post_init__(self) -> None:
        if Path(self.out).suffix not in self.suffixes:
            formats = f"{', '.join(self.suffixes[:-1])} or {self.suffixes[-1]}"
            raise ValueError(f"out: {self.out!r} must end in {formats}")

    def read(self, trained: Run) -> tuple[Rows, str, tuple[str, ...] | None]:
        """The rows, a description of where they come from, and the names of the features."""
        dataset = trained.load_data(self.data)
        rows, part, _ = trained.checkpoint.parts(dataset, self.data is None, self.part)
        return rows, f"{dataset.origin}, {part}", dataset.feature_names


def write_array(path: Path, array: np.ndarray, names: list[str]) -> None:
    """Write an array [N, K] whose columns have ``names``; ``x`` is its name in an .npz file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        write_whole(path, lambda file: np.save(file, array))
    elif path.suffix == ".npz":
        write_whole(path, lambda file: np.savez(file, x=array))
    elif path.suffix == ".csv":
        header = ",".join(f'"{name}"' if {",", '"'} & set(name) else name for name in names)
        write_whole(
            path,
            lambda file: np.savetxt(
                file, array, fmt="%.9g", delimiter=",", header=header, comments="", encoding="utf-8"
            ),
        )
    else:
        pyarrow = require("pyarrow", path.name, "data")
        parquet = require("pyarrow.parquet", path.name, "data")
        table = pyarrow.table(list(array.T), names=names)
        write_whole(path, lambda file: parquet.write_table(table, file))
