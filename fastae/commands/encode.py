"""``fastae encode``: the codes of a data set as a file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from ..console import Console
from ..files import write_whole
from ..run import load
from ..train.data import Rows
from ..train.evaluation import encode_rows
from .output import SUFFIXES, RowsConfig, write_array


@dataclass(frozen=True)
class Config(RowsConfig):
    """Write the codes of a data set to a file.

    Attributes:
        out: File to write: .npy, .npz, .csv, .parquet or .safetensors. The last one also holds the labels as
            y; labels that are text as class numbers, with the classes in the metadata.
        depth: Number of layers to encode by. By default all.
    """

    depth: int | None = None

    suffixes = (*SUFFIXES, ".safetensors")


def run(config: Config, console: Console) -> None:
    """Run the command."""
    trained = load(config.run)
    stack = trained.checkpoint.stack
    depth = len(stack.layers)
    if config.depth is not None and not 1 <= config.depth <= depth:
        raise ValueError(f"depth: must be in 1..{depth}, got {config.depth}")
    rows, origin, _ = config.read(trained)
    codes = encode_rows(stack, rows, config.depth)
    out = Path(config.out)
    if out.suffix == ".safetensors":
        out.parent.mkdir(parents=True, exist_ok=True)
        write_whole(out, _as_safetensors(codes, rows))
    else:
        write_array(out, codes, [f"unit {j}" for j in range(codes.shape[1])])
    console.print(f"{out}: codes of {origin}: {codes.shape[0]} x {codes.shape[1]}")


def _as_safetensors(codes: np.ndarray, rows: Rows) -> bytes:
    """Codes as ``x`` and labels as ``y``; a tensor cannot hold text."""
    if rows.labels is None:
        return save({"x": codes})
    if rows.labels.dtype.kind != "U" or rows.targets is None or rows.classes is None:
        return save({"x": codes, "y": rows.labels})
    return save({"x": codes, "y": rows.targets}, {"classes": json.dumps(rows.classes.tolist())})
