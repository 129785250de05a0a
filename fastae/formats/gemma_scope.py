"""Gemma Scope's params.npz: JumpReLU, not centred. Read only."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..sparse.module import SparseAutoencoder
from ..sparse.specs import JumpReLU
from .parts import FormatError, Source

WEIGHTS = "params.npz"


def read(file: Path) -> SparseAutoencoder:
    try:
        with np.load(file, allow_pickle=False) as arrays:
            tensors = {name: torch.from_numpy(np.ascontiguousarray(arrays[name])) for name in arrays.files}
    except (OSError, ValueError) as error:
        raise FormatError(f"{file}: could not be read as npz ({error})") from error
    source = Source(file, tensors, {})
    parameters: dict[str, Tensor | None] = {
        "encoder.weight": source.matrix("W_enc").t(),
        "encoder.bias": source.tensor("b_enc"),
        "decoder.weight": source.matrix("W_dec"),
        "decoder.bias": source.tensor("b_dec"),
        "threshold": source.tensor("threshold").clamp_min(0.0),
    }
    return source.build(JumpReLU(), parameters, center=False)
