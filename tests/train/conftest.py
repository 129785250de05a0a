"""Fixtures of the training tests: tiny data, tiny configurations, and ways to interrupt a run."""

import os
import signal
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastae.train import Dataset, Stage, TrainConfig, TrainResult, dataset_from_arrays, train
from fastae.train import stage as stage_module
from fastae.train.reporting import Silent

TIMINGS = ("seconds", "rows_per_second")


@pytest.fixture(autouse=True)
def take_ctrl_c() -> Iterator[None]:
    """Take SIGINT, which a shell's background processes ignore."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def table() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(23, 5)).astype(np.float32)


@pytest.fixture(scope="session")
def tiny() -> Dataset:
    """45 rows to train on and 12 to test on, of 6 columns in [0, 1], in 3 classes."""
    rng = np.random.default_rng(5)
    labels, labels_test = np.arange(45) % 3, np.arange(12) % 3
    centres = rng.random((3, 6))

    def rows(of: np.ndarray) -> np.ndarray:
        return np.clip(centres[of] + 0.15 * rng.normal(size=(len(of), 6)), 0, 1).astype(np.float32)

    return dataset_from_arrays("tiny", rows(labels), labels, rows(labels_test), labels_test, scaling="none")


@pytest.fixture
def make_config(tmp_path: Path) -> Callable[..., TrainConfig]:
    """A factory of configurations for ``tiny``: 36 rows to train on in 4 steps an epoch (the last of 6 rows),
    two layers, every stage of ``epochs`` epochs, and the run's folder ``tmp_path/<name>``."""

    def make(name: str = "run", epochs: int = 2, **changes: Any) -> TrainConfig:
        stage = Stage(epochs=epochs, batch_size=10, lr=0.01)
        values: dict[str, Any] = {
            "sizes": (6, 5, 4),
            "corruption": ("masking:0.2",),
            "pretrain": stage,
            "finetune": stage,
            "classifier": True,
            "supervised": stage,
            "validation": 0.2,
            "out": str(tmp_path / name),
            "tensorboard": False,
            "device": "cpu",
        }
        return TrainConfig(**{**values, **changes})

    return make


@pytest.fixture
def one_layer(make_config: Callable[..., TrainConfig]) -> Callable[..., TrainConfig]:
    """The same with one layer without noise, and only its pretraining, as ``pretrain`` says."""

    def make(name: str = "run", pretrain: Stage | None = None, **changes: Any) -> TrainConfig:
        stage = pretrain or Stage(epochs=2, batch_size=10, lr=0.01)
        only = {"sizes": (6, 4), "corruption": ("none",), "finetune": Stage(epochs=0), "classifier": False}
        return make_config(name, pretrain=stage, **{**only, **changes})

    return make


class Updates(Silent):
    """A progress that is told of every step; ``act`` is called with the number of steps done so far."""

    def __init__(self, act: Callable[[int], None] = lambda steps: None) -> None:
        self.steps = 0
        self.stages: list[str] = []
        self.rows: list[dict[str, Any]] = []
        self.act = act

    def start(self, stage: str, steps: int, done: int, epochs: int) -> None:
        if not self.stages:
            self.act(0)
        self.stages.append(stage)

    def update(self, done: int, terms: Any, rows_per_second: float) -> None:
        self.steps += 1
        self.act(self.steps)

    def end_epoch(self, row: Any) -> None:
        self.rows.append(row)


@pytest.fixture
def updates(monkeypatch: pytest.MonkeyPatch) -> type[Updates]:
    """The class above, with every step reported."""
    monkeypatch.setattr(stage_module, "_REPORT_SECONDS", 0.0)
    return Updates


@pytest.fixture
def interrupt(updates: type[Updates], tiny: Dataset) -> Callable[[TrainConfig, int], None]:
    """Trains until Ctrl-C comes during step ``steps``, which is finished, saved, and the last one."""

    def run(config: TrainConfig, steps: int) -> None:
        def act(done: int) -> None:
            if done == steps - 1:
                os.kill(os.getpid(), signal.SIGINT)

        progress = updates(act)
        with pytest.raises(KeyboardInterrupt):
            train(config, dataset=tiny, progress=progress)
        assert progress.steps == steps

    return run


@pytest.fixture
def resume(tiny: Dataset) -> Callable[..., TrainResult]:
    """Continues a run from its last checkpoint."""

    def run(config: TrainConfig, **changes: Any) -> TrainResult:
        return train(replace(config, resume=True, **changes), dataset=tiny)

    return run


def _figures(history: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name not in TIMINGS} for row in history]


@pytest.fixture(scope="session")
def figures() -> Callable[[Iterable[dict[str, Any]]], list[dict[str, Any]]]:
    """A history without the columns that depend on the clock."""
    return _figures


@pytest.fixture(scope="session")
def assert_same_run() -> Callable[[TrainResult, TrainResult], None]:
    """Two runs have the same figures and, bit for bit, the same parameters."""

    def check(a: TrainResult, b: TrainResult) -> None:
        assert _figures(a.history) == _figures(b.history)
        for one, other in ((a.stack, b.stack), (a.classifier, b.classifier)):
            if one is None or other is None:
                assert one is other
                continue
            ours, theirs = one.state_dict(), other.state_dict()
            assert ours.keys() == theirs.keys()
            different = [name for name in ours if not torch.equal(ours[name], theirs[name])]
            assert not different

    return check
