"""``fastae encode``: the codes of a data set as a file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from safetensors.numpy import save

from ..console import Console
from ..files import write_whole
from ..run import load
from ..train.data import Rows
from ..train.evaluation import encode_rows
from .output import SUFFIXES, check_suffix, write_array


@dataclass(frozen=True)
class Config:
    """Write the codes of a data set to a file.

    Attributes:
        run: a run's folder, or one checkpoint's.
        out: the file to write: .npy, .npz, .csv, .parquet, or .safetensors (with the labels as "y"; for text,
            their class numbers, with the classes in the metadata).
        data: a data set's name or a path; by default the one the run was trained on.
        test: encode the test part instead of the training part.
        depth: after how many layers to stop; by default all.
    """

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    out: str
    data: str | None = None
    test: bool = False
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
    rows = dataset.part(config.test)
    codes = encode_rows(stack, rows, config.depth)
    out = Path(config.out)
    if out.suffix == ".safetensors":
        out.parent.mkdir(parents=True, exist_ok=True)
        write_whole(out, _as_safetensors(codes, rows))
    else:
        write_array(out, codes, [f"unit {j}" for j in range(codes.shape[1])])
    console.print(f"{out}: codes {codes.shape[0]} x {codes.shape[1]}")


def _as_safetensors(codes: np.ndarray, rows: Rows) -> bytes:
    """Codes as ``x`` and labels as ``y``; a tensor cannot hold text."""
    if rows.labels is None:
        return save({"x": codes})
    if rows.labels.dtype.kind != "U" or rows.targets is None or rows.classes is None:
        return save({"x": codes, "y": rows.labels})
    return save({"x": codes, "y": rows.targets}, {"classes": json.dumps(rows.classes.tolist())})
