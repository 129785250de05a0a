"""A run that is killed at any moment and resumed ends with the figures and parameters of one that is not."""

import csv
import multiprocessing
import random
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastae.train import Stage, TrainConfig, load_checkpoint, train
from tests.processes import forks

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("forkserver" not in multiprocessing.get_all_start_methods(), reason="needs fork"),
]

EPOCHS = 30  # of 3 steps, so that many a checkpoint stands at the end of an epoch
STAGES = ("layer 1", "layer 2", "fine-tuning", "classifier")
DELAYS = random.Random(20)


@pytest.fixture(scope="module")
def processes():
    return forks()


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> TrainConfig:
    """A short run with every kind of state: noise, momentum, a schedule, best parameters."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(1)
    labels = np.arange(220) % 4
    x = np.clip(rng.random((4, 12))[labels] + 0.2 * rng.normal(size=(220, 12)), 0, 1)
    np.savez(folder / "rows.npz", x=x.astype(np.float32), y=labels)
    stage = Stage(
        epochs=EPOCHS, batch_size=70, lr=0.005, schedule="CosineAnnealingLR", patience=EPOCHS, clip_norm=5.0
    )
    return TrainConfig(
        data=str(folder / "rows.npz"),
        scaling="none",
        sizes=(12, 10, 6),
        corruption=("masking:0.2", "gaussian:0.1"),
        contractive=(0.01,),
        dropout=(0.1,),
        pretrain=stage,
        finetune=stage,
        classifier=True,
        supervised=stage,
        out=str(folder / "whole"),
        checkpoint_seconds=0.2,
        tensorboard=False,
        device="cpu",
    )


def outcome(run: Path) -> tuple[list[dict[str, Any]], bytes]:
    """The figures of a finished run and the file with its parameters."""
    checkpoint = load_checkpoint(run, with_state=True)
    assert checkpoint.state.values["finished"] and checkpoint.path is not None
    history = checkpoint.state.values["history"]
    with (run / "log.csv").open(newline="") as file:
        logged = [(row["stage"], int(row["epoch"])) for row in csv.DictReader(file)]
    assert logged == [(row["stage"], row["epoch"]) for row in history]
    timings = ("seconds", "rows_per_second")
    figures = [{name: value for name, value in row.items() if name not in timings} for row in history]
    return figures, (checkpoint.path / "model.safetensors").read_bytes()


def live(processes: Any, config: TrainConfig, seconds: float | None = None) -> bool:
    """One life of a run, from its last checkpoint on; whether it was killed after ``seconds``."""
    begun = any(Path(config.out).glob("checkpoint-*"))
    process = processes.Process(target=train, args=(replace(config, resume=begun),))
    process.start()
    process.join(120 if seconds is None else seconds)
    if process.is_alive():
        assert seconds is not None, "the run does not end"
        process.kill()
        process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    if any(Path(config.out).glob("checkpoint-*")):
        load_checkpoint(config.out, with_state=True)  # the last one is whole
    return process.exitcode != 0


@pytest.fixture(scope="module")
def whole(processes, config) -> tuple[list[dict[str, Any]], bytes]:
    """The outcome without any kill."""
    assert not live(processes, config)
    figures, parameters = outcome(Path(config.out))
    assert {row["stage"]: row["epoch"] for row in figures} == dict.fromkeys(STAGES, EPOCHS)
    return figures, parameters


def test_a_run_killed_again_and_again_ends_as_if_it_was_not(processes, config, whole, tmp_path):
    config, kills = replace(config, out=str(tmp_path / "run"), checkpoint_seconds=0.05), 0
    while kills < 10 and live(processes, config, DELAYS.uniform(0.05, 0.25)):
        kills += 1
    assert kills >= 4  # the rest may have come too late
    live(processes, config)
    assert outcome(tmp_path / "run") == whole


@pytest.mark.parametrize("delay", [round(DELAYS.uniform(0.1, 1.3), 3) for _ in range(4)])
def test_a_run_killed_once_ends_as_if_it_was_not(processes, config, whole, tmp_path, delay):
    config = replace(config, out=str(tmp_path / "run"))
    live(processes, config, delay)
    live(processes, config)
    assert outcome(tmp_path / "run") == whole


@pytest.mark.parametrize("delay", [round(DELAYS.uniform(0.2, 0.7), 3) for _ in range(3)])
def test_a_run_killed_while_it_writes_a_checkpoint_ends_as_if_it_was_not(
    processes, config, whole, tmp_path, delay
):
    """One checkpoint a step: the kill is nearly always between two of its files."""
    config = replace(config, out=str(tmp_path / "run"))
    assert live(processes, replace(config, checkpoint_seconds=0.0), delay)
    live(processes, config)
    assert outcome(tmp_path / "run") == whole
    assert not [path.name for path in (tmp_path / "run").iterdir() if path.name.startswith(".tmp")]
