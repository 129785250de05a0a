"""The state of a dictionary's training in one file, so that a run that was killed goes on exactly."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch.optim import Optimizer

from ..errors import CheckpointError, one_line
from ..files import write_whole
from ..sparse.module import SparseAutoencoder
from .checkpoint_files import fill
from .folder import DICTIONARY_STATE
from .optimizer_state import optimizer_state, restore_optimizer
from .typed import typed, typed_fields
from .writing import BackgroundWriter, Tensors

_MODULE, _OPTIMIZER = "module.", "optimizer."


@dataclass(frozen=True)
class Position:
    """Where training stands.

    Attributes:
        epoch: the current one, from 0.
        batch: the next one of the epoch, from 0.
        sums: of the epoch's terms so far.
        log: the terms of the epochs before.
        data: fingerprint of the rows, where they are a data set's.
    """

    epoch: int = 0
    batch: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    log: list[dict[str, Any]] = field(default_factory=list)
    data: str | None = None

    def check(self, epochs: int, batches: int) -> None:
        """Raise ``ValueError`` unless training for so many epochs of ``batches`` batches can stand here."""
        within = self.epoch < epochs and 0 < self.batch < batches
        if not (0 <= self.epoch <= epochs and (within or self.batch == 0)):
            raise ValueError(f"position: epoch {self.epoch}, batch {self.batch} is beyond the run")
        if len(self.log) != self.epoch or any(row.keys() != self.log[0].keys() for row in self.log):
            raise ValueError(f"position.log: expected {self.epoch} rows of the same terms")
        for number, row in enumerate(self.log):
            for name, value in row.items():
                typed(f"position.log[{number}].{name}", value, float)


def save_state(
    writer: BackgroundWriter,
    folder: Path,
    config: dict[str, Any],
    sae: SparseAutoencoder,
    optimizer: Optimizer,
    position: Position,
) -> None:
    """Have the state written; a kill at any moment leaves the state before or this one."""
    values, tensors = optimizer_state(optimizer)
    state = json.dumps({"config": config, "position": asdict(position), "optimizer": values})

    def write(copies: Tensors) -> None:
        named = {prefix + name: copy for prefix, own in copies.items() for name, copy in own.items()}
        write_whole(folder / DICTIONARY_STATE, save(named, {"state": state}))

    writer.submit({_MODULE: sae.state_dict().items(), _OPTIMIZER: tensors.items()}, write)


def read_config(folder: Path) -> dict[str, Any]:
    """The configuration that the state in a folder was written with, of as many latents as its tensors have.

    Raises:
        CheckpointError: the file cannot be read.
    """
    with _opened(folder) as (file, state):
        latents = file.get_slice(f"{_MODULE}encoder.weight").get_shape()[0]
        if state["config"]["latents"] != latents:  # which a module may be too large for
            raise ValueError(f"latents: {state['config']['latents']!r}, but its tensors have {latents}")
        return dict(state["config"])


def restore_state(folder: Path, sae: SparseAutoencoder, optimizer: Optimizer) -> Position:
    """Load the state in a folder into a module and its optimizer.

    Raises:
        CheckpointError: the file cannot be read, or does not fit.
    """
    with _opened(folder) as (file, state):
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        module = {name.removeprefix(_MODULE): t for name, t in tensors.items() if name.startswith(_MODULE)}
        moments = {n.removeprefix(_OPTIMIZER): t for n, t in tensors.items() if n.startswith(_OPTIMIZER)}
        sae.load_state_dict(module)
        fill(restore_optimizer(optimizer, torch.optim.Adam, state["optimizer"]), moments)
        return Position(**typed_fields(Position, state["position"], "position."))


@contextmanager
def _opened(folder: Path) -> Iterator[tuple[Any, dict[str, Any]]]:
    """The open file and the values in its header; whatever fails within is a ``CheckpointError``."""
    path = folder / DICTIONARY_STATE
    try:
        with safe_open(path, "pt") as file:
            yield file, json.loads((file.metadata() or {})["state"])
    except Exception as error:  # a damaged file leads to errors of any kind
        raise CheckpointError(f"{path}: cannot be used ({one_line(error)})") from error
