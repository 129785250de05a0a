"""Arrays as files of the formats that commands write."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..files import write_whole
from ..optional import require

SUFFIXES = (".npy", ".npz", ".csv", ".parquet")


def check_suffix(out: str, suffixes: tuple[str, ...] = SUFFIXES) -> None:
    """Raises ``ValueError`` for a file that :func:`write_array` has no format for."""
    if Path(out).suffix not in suffixes:
        raise ValueError(f"out: {out!r} must end in {', '.join(suffixes[:-1])} or {suffixes[-1]}")


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
