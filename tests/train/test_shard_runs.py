"""Runs on shards: streamed as in memory, resumed in the middle of an epoch."""

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fastae.train import ShardWriter, Stage, TrainConfig, dictionary, train

ROWS = 600


def write(folder: Path) -> None:
    rows = np.random.default_rng(0).random((ROWS, 6)).astype(np.float16)
    with ShardWriter(folder, rows_per_shard=160) as writer:
        writer.write(rows)


@pytest.fixture
def config(tmp_path) -> Callable[..., TrainConfig]:
    """Streamed through windows of 87 rows, where 540 rows are trained on in 18 steps per epoch."""
    write(tmp_path / "rows")

    def make(name: str, **changes) -> TrainConfig:
        values = {
            "data": str(tmp_path / "rows"), "sizes": (6, 4), "pretrain": Stage(epochs=2, batch_size=30),
            "finetune": Stage(epochs=0), "window_mib": 0.001, "memory_gib": 0.0, "device": "cpu",
            "tensorboard": False, "out": str(tmp_path / name),
        }  # fmt: skip
        return TrainConfig(**{**values, **changes})

    return make


def test_streamed_and_resident_runs_are_the_same(config, assert_same_run):
    streamed, resident = train(config("streamed")), train(config("resident", memory_gib=1.0))
    assert_same_run(streamed, resident)
    full = train(config("full", window_mib=0.0))
    assert not torch.equal(
        full.stack.autoencoders[0].encoder.weight, streamed.stack.autoencoders[0].encoder.weight
    )


@pytest.mark.parametrize("after", [1, 3, 7, 18, 31])
def test_a_run_goes_on_in_the_middle_of_a_window(config, updates, assert_same_run, after):
    whole = train(config("whole"))

    def act(done: int) -> None:
        if done == after - 1:
            os.kill(os.getpid(), signal.SIGINT)

    part = config("part")
    with pytest.raises(KeyboardInterrupt):
        train(part, progress=updates(act))
    # other memory, as of another machine, changes nothing
    assert_same_run(whole, train(replace(part, resume=True, memory_gib=1.0, window_mib=None)))


def test_the_window_is_kept_by_the_run(config):
    kept = train(config("run", window_mib=None, memory_gib=0.3)).config
    assert kept is not None and kept.window_mib == pytest.approx(102.4)
    with pytest.raises(ValueError, match=r"^window_mib: .*memory_gib 0\.1$"):
        config("run", window_mib=100.0, memory_gib=0.1)


def test_a_dictionary_takes_its_rows_from_the_same_windows(config, tmp_path):
    """Streamed with memory for two windows as with memory for all rows."""
    runs = []
    for name, memory_gib in (("streamed", 1e-5), ("resident", 1.0)):
        settings = {"latents": 16, "activation": "topk:2", "epochs": 2, "batch_size": 40, "device": "cpu"}
        run = dictionary.SparseTrainConfig(
            data=config(name).data,
            out=str(tmp_path / name),
            memory_gib=memory_gib,
            window_mib=0.001,
            **settings,
        )
        runs.append(dictionary.train(run).sae.state_dict())
    assert all(torch.equal(value, runs[1][name]) for name, value in runs[0].items())
