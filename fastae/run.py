"""A trained run, for use."""

from __future__ import annotations

from .train.checkpoint import Checkpoint, load_checkpoint
from .train.data import Dataset, load_dataset


def load_with_data(run: str, data: str | None) -> tuple[Checkpoint, Dataset]:
    """A checkpoint, and data scaled as its training data were: ``data``, or what it was trained on."""
    checkpoint = load_checkpoint(run)
    own = data is None
    name = checkpoint.config.get("data") if own else data
    if not isinstance(name, str):
        raise ValueError(f"data: {checkpoint.path} does not say what it was trained on; name the data")
    test = checkpoint.config.get("test") if own else None
    dataset = load_dataset(name, test=test, scaling=checkpoint.scaling)
    if dataset.width != checkpoint.stack.sizes[0]:
        raise ValueError(
            f"data: {dataset.name} has rows of {dataset.width}, the run takes {checkpoint.stack.sizes[0]}"
        )
    return checkpoint, dataset
