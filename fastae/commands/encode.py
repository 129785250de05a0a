"""``fastae encode``: the codes of a data set as a file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from safetensors.numpy import save

from ..console import Console
from ..files import write_whole
from ..run import load
from ..train.config import POSITIONAL
from ..train.data import Rows
from ..train.evaluation import PartName, encode_rows
from .output import SUFFIXES, check_suffix, write_array


@dataclass(frozen=True)
class Config:
    """Write the codes of a data set to a file.

    Attributes:
        run: Folder of a run, or of one of its checkpoints.
        out: File to write: .npy, .npz, .csv, .parquet or .safetensors. The last one also holds the labels as
            y; labels that are text as class numbers, with the classes in the metadata.
        data: A data set, a file or a folder. By default the data that the run was trained on.
        part: Part of the data to encode; train is all rows that are not the test part.
        depth: Number of layers to encode by. By default all.
    """

    run: Annotated[str, POSITIONAL]
    out: str
    data: str | None = None
    part: PartName = "train"
    depth: int | None = None

    def __post_init__(self) -> None:
        check_suffix(self.out, (*SUFFIXES, ".safetensors"))


def run(config: Config, console: Console) -> None:
    """Run the command."""
    trained = load(config.run)
    dataset, stack = trained.load_data(config.data), trained.checkpoint.stack
    depth = len(stack.layers)
    if config.depth is not None and not 1 <= config.depth <= depth:
        raise ValueError(f"depth: must be in 1..{depth}, got {config.depth}")
    rows, part, _ = trained.checkpoint.parts(dataset, config.data is None, config.part)
    codes = encode_rows(stack, rows, config.depth)
    out = Path(config.out)
    if out.suffix == ".safetensors":
        out.parent.mkdir(parents=True, exist_ok=True)
        write_whole(out, _as_safetensors(codes, rows))
    else:
        write_array(out, codes, [f"unit {j}" for j in range(codes.shape[1])])
    console.print(f"{out}: codes of {dataset.origin}, {part}: {codes.shape[0]} x {codes.shape[1]}")


def _as_safetensors(codes: np.ndarray, rows: Rows) -> bytes:
    """Codes as ``x`` and labels as ``y``; a tensor cannot hold text."""
    if rows.labels is None:
        return save({"x": codes})
    if rows.labels.dtype.kind != "U" or rows.targets is None or rows.classes is None:
        return save({"x": codes, "y": rows.labels})
    return save({"x": codes, "y": rows.targets}, {"classes": json.dumps(rows.classes.tolist())})
