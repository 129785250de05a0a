"""``fastae reconstruct``: reconstructions of rows as a file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..console import Console
from ..run import load
from .output import RowsConfig, write_array


@dataclass(frozen=True)
class Config(RowsConfig):
    """Write the reconstruction of each row in the data's own units, as for denoising."""


def run(config: Config, console: Console) -> None:
    """Run the command."""
    trained = load(config.run)
    rows, origin, names = config.read(trained)
    array = trained.reconstruct_rows(rows)
    write_array(Path(config.out), array, list(names or [f"feature {i}" for i in range(array.shape[1])]))
    console.print(f"{config.out}: reconstructions of {origin}: {array.shape[0]} x {array.shape[1]}")
