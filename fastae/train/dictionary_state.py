"""The state of a dictionary's training in one file, so that a run that was killed goes on exactly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch.optim import Optimizer

from ..errors import CheckpointError
from ..files import write_whole
from ..sparse.module import SparseAutoencoder
from .optimizer_state import optimizer_state, restore_optimizer

STATE = "training.safetensors"
_MODULE, _OPTIMIZER = "module.", "optimizer."


class Position(NamedTuple):
    """Where training stands: before batch ``batch`` of epoch ``epoch``, both from 0."""

    epoch: int
    batch: int
    sums: dict[str, float]  # of the epoch's terms so far
    log: list[dict[str, float]]  # of the epochs before


def save_state(
    folder: Path, config: dict[str, Any], sae: SparseAutoencoder, optimizer: Optimizer, position: Position
) -> None:
    """Write the state; a kill at any moment leaves the state before or this one."""
    values, tensors = optimizer_state(optimizer)
    named = {_MODULE + name: tensor.contiguous() for name, tensor in sae.state_dict().items()}
    named |= {_OPTIMIZER + name: tensor.contiguous() for name, tensor in tensors.items()}
    state = {"config": config, "position": position._asdict(), "optimizer": values}
    write_whole(folder / STATE, save(named, {"state": json.dumps(state)}))


def read_config(folder: Path) -> dict[str, Any]:
    """The configuration that the state in a folder was written with.

    Raises:
        CheckpointError: the file cannot be read.
    """
    return _read(folder)[0]["config"]


def restore_state(folder: Path, sae: SparseAutoencoder, optimizer: Optimizer) -> Position:
    """Load the state in a folder into a module and its optimizer.

    Raises:
        CheckpointError: the file cannot be read, or does not fit.
    """
    state, tensors = _read(folder)
    module = {name.removeprefix(_MODULE): t for name, t in tensors.items() if name.startswith(_MODULE)}
    moments = {name.removeprefix(_OPTIMIZER): t for name, t in tensors.items() if name.startswith(_OPTIMIZER)}
    try:
        sae.load_state_dict(module)
        restore_optimizer(optimizer, torch.optim.Adam, state["optimizer"], moments)
        return Position(**state["position"])
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder / STATE}: does not fit ({error})") from error


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    path = folder / STATE
    try:
        with safe_open(path, "pt") as file:
            state = json.loads((file.metadata() or {})["state"])
            return state, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, KeyError, TypeError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{path}: could not be read ({error})") from error
