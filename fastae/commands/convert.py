"""``fastae convert``: the checkpoint of several processes in whole files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from ..console import Console
from ..train.checkpoint import gather_checkpoint
from ..train.config import POSITIONAL

EXAMPLES = ("fastae convert runs/wide --out runs/wide-whole",)


@dataclass(frozen=True)
class Config:
    """Write the last checkpoint of a run with all parameters in one model.safetensors.

    Processes that share the parameters (--shard) write a file each. All commands read these as they are;
    other programs may want one file.

    Attributes:
        run: Folder of a run, or of one checkpoint.
        out: Folder to write, which must not be there.
    """

    run: Annotated[str, POSITIONAL]
    out: str


def run(config: Config, console: Console) -> None:
    """Run the command."""
    gather_checkpoint(config.run, Path(config.out))
    console.print(f"{Path(config.out) / 'model.safetensors'}", highlight=False)
