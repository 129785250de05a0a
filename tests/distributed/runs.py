"""Runs that one process and several of them train alike."""

from __future__ import annotations

import pkgutil
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fastae.distributed import world
from fastae.train import Dataset, Stage, TrainConfig, dataset_from_arrays, engine, train

ROWS, WIDTH = 45, 6
STAGE = Stage(epochs=2, batch_size=10, lr=0.01)


def dataset() -> Dataset:
    """45 rows of 6 columns in [0, 1], in 3 classes; 36 of them are trained on."""
    rng = np.random.default_rng(5)
    labels = np.arange(ROWS) % 3
    x = np.clip(rng.random((3, WIDTH))[labels] + 0.15 * rng.normal(size=(ROWS, WIDTH)), 0, 1)
    return dataset_from_arrays("rows", x.astype(np.float32), labels, scaling="none")


def config(out: Path, **changes: Any) -> TrainConfig:
    """One layer of four units, two epochs of three steps of 10 rows and one of 6, in float64."""
    values: dict[str, Any] = {
        "sizes": (WIDTH, 4),
        "pretrain": STAGE,
        "finetune": Stage(epochs=0),
        "validation": 0.2,
        "precision": "float64",
        "out": str(out),
        "tensorboard": False,
        "device": "cpu",
    }
    return TrainConfig(**{**values, **changes})


def trained(settings: TrainConfig) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """The parameters and the figures of a run."""
    result = train(settings, dataset=dataset())
    tensors = dict(result.stack.state_dict())
    if result.classifier is not None:
        tensors |= {f"classifier.{name}": value for name, value in result.classifier.state_dict().items()}
    figures = [
        {name: value for name, value in row.items() if name not in ("seconds", "rows_per_second")}
        for row in result.history
    ]
    return tensors, figures


def of_one_process(settings: TrainConfig) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """The same run without a group."""
    assert settings.out is not None
    return trained(replace(settings, out=f"{settings.out}-alone"))


class Stopped(Exception):
    """Raised by every process after a checkpoint."""


def train_until_saved(settings: TrainConfig, epoch: int = 0) -> None:
    """Train a run, which saves after every step, to its first checkpoint from an epoch on."""

    def save(run: engine._Run) -> None:
        original(run)
        if run.session.state.epoch >= epoch:
            raise Stopped

    original = engine._Run._save
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(world, "_POLL_SECONDS", 0.0)
        patch.setattr(engine._Run, "_save", save)
        train(replace(settings, checkpoint_seconds=0.0), dataset=dataset())


def train_on_a_full_disk(settings: TrainConfig, rank: int, writer: str, call: int) -> None:
    """Train a run in which a call of ``module:function`` by one process finds no space left."""
    write, calls = pkgutil.resolve_name(writer), 0
    owner, name = re.split(r"[.:](?=\w+$)", writer)

    def failing(*args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call and torch.distributed.get_rank() == rank:
            raise OSError(28, "No space left on device")
        return write(*args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(world, "_POLL_SECONDS", 0.0)
        patch.setattr(pkgutil.resolve_name(owner), name, failing)
        train(replace(settings, checkpoint_seconds=0.0), dataset=dataset())


def assert_same(
    ours: tuple[dict[str, Tensor], list[dict[str, Any]]],
    theirs: tuple[dict[str, Tensor], list[dict[str, Any]]],
    tolerance: float,
) -> None:
    """Parameters and figures agree but for the rounding of sums."""
    assert ours[0].keys() == theirs[0].keys() and len(ours[1]) == len(theirs[1])
    for name, value in ours[0].items():
        torch.testing.assert_close(value, theirs[0][name], rtol=tolerance, atol=tolerance, msg=name)
    for row, other in zip(ours[1], theirs[1], strict=True):
        assert row.keys() == other.keys()
        for name, value in row.items():
            if isinstance(value, float):
                difference = abs(value - other[name])
                assert difference <= tolerance * max(1.0, abs(value)), (name, value, other[name])
            else:
                assert value == other[name], name
