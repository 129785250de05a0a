"""A trained run, for use."""

from __future__ import annotations

from .train.checkpoint import Checkpoint, load_checkpoint
from .train.data import Dataset


def load_with_data(run: str, data: str | None) -> tuple[Checkpoint, Dataset]:
    """A checkpoint, and data scaled as its training data were: ``data``, or what it was trained on."""
    checkpoint = load_checkpoint(run)
    dataset = checkpoint.load_data(data)
    if dataset.width != checkpoint.stack.sizes[0]:
        raise ValueError(
            f"data: {dataset.name} has rows of {dataset.width}, the run takes {checkpoint.stack.sizes[0]}"
        )
    return checkpoint, dataset
