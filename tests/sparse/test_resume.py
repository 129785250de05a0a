"""A training of a dictionary that is killed at any step and resumed ends with the same weights."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from fastae.errors import CheckpointError
from fastae.formats import FormatError
from fastae.interruption import Interrupted
from fastae.train import Stage, TrainConfig, dataset_from_arrays, load_checkpoint, train
from fastae.train import dictionary as training
from fastae.train.dictionary import SparseTrainConfig
from fastae.train.folder import DICTIONARY_STATE, locked
from fastae.train.step import TrainingStep
from tests.processes import forks


def make(out: Path, **options) -> SparseTrainConfig:
    data = out.with_suffix(".npy")
    np.save(data, np.random.default_rng(0).normal(size=(300, 8)).astype(np.float32))
    given = {"latents": 32, "activation": "batch_topk:3", "epochs": 2, "batch_size": 40, "dead_after": 80}
    given |= {"data": str(data), "scaling": "none"}
    return SparseTrainConfig(out=str(out), **(given | {"checkpoint_seconds": 0.0} | options))


def train_until(config: SparseTrainConfig, steps: int) -> None:
    """Train, and be killed in the middle of a step, after its update."""
    call, count = TrainingStep.__call__, [0]

    def counted(self: TrainingStep, *args, **options):
        result = call(self, *args, **options)
        count[0] += 1
        if count[0] == steps:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    TrainingStep.__call__ = counted
    training.train(config)


@pytest.mark.skipif("forkserver" not in multiprocessing.get_all_start_methods(), reason="needs fork")
@pytest.mark.parametrize("optimizer", ["adam", "dictionary_adam"])
def test_killed_runs_end_as_others(optimizer, tmp_path):
    whole = training.train(make(tmp_path / "whole", optimizer=optimizer, checkpoint_seconds=1e9))
    config = make(tmp_path / "killed", optimizer=optimizer, resume=True)
    for steps in (1, 3, 6) if optimizer == "adam" else (9,):  # also before the first save
        process = forks().Process(target=train_until, args=(config, steps))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    with pytest.raises(CheckpointError, match="has an unfinished run"):
        training.train(replace(config, resume=False))
    with pytest.warns(UserWarning, match="the run keeps its own latents$"):
        resumed = training.train(make(tmp_path / "killed", resume=True, latents=99))
    assert resumed.config.latents == 32 and not (tmp_path / "killed" / DICTIONARY_STATE).exists()
    for name, value in whole.sae.state_dict().items():
        assert torch.equal(resumed.sae.state_dict()[name], value), name
    assert resumed.figures == whole.figures
    logs = [(run.path / "log.csv").read_text() for run in (whole, resumed)]
    assert logs[0] == logs[1]
    assert training.train(config).figures == whole.figures  # a finished run is returned


def interrupt(config: SparseTrainConfig) -> None:
    """Train until SIGTERM comes at the end of the first epoch."""
    with pytest.raises(Interrupted) as caught:
        training.train(config, lambda epoch, terms: os.kill(os.getpid(), signal.SIGTERM))
    assert (caught.value.number, caught.value.run) == (signal.SIGTERM, Path(config.out))


def test_a_signal_ends_training_with_its_state_kept(tmp_path):
    config = make(tmp_path / "run", checkpoint_seconds=1e9)
    whole = training.train(replace(config, out=str(tmp_path / "whole")))
    interrupt(config)
    with locked(tmp_path / "run"), pytest.raises(CheckpointError, match=f"process {os.getpid()} is training"):
        training.train(replace(config, resume=True))
    resumed = training.train(replace(config, resume=True), given=("resume",))
    assert resumed.figures == whole.figures and len((tmp_path / "run/log.csv").read_text().split()) == 3
    with pytest.warns(UserWarning, match="the run keeps its own epochs, batch_size$"):
        training.train(
            replace(config, resume=True, epochs=20, batch_size=256), given=("epochs", "batch_size")
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epoch": 1e308}, "position.epoch: must be a whole number"),
        ({"epoch": 5}, "epoch 5, batch 0 is beyond the run"),
        ({"batch": 9}, "epoch 1, batch 9 is beyond the run"),
        ({"log": [{}, {}]}, "expected 1 rows of the same terms"),
        ({"data": "all:0"}, "was trained on other data than .*run.npy is now"),
        ({"latents": 10**12}, "latents: 1000000000000, but its tensors have 32"),
    ],
    ids=str,
)
def test_a_state_that_does_not_fit_is_refused(tmp_path, change, message):
    config = make(tmp_path / "run")
    interrupt(config)
    path = tmp_path / "run" / DICTIONARY_STATE
    with safe_open(path, "pt") as file:
        state = json.loads(file.metadata()["state"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    (state["config"] if "latents" in change else state["position"]).update(change)
    save_file(tensors, path, {"state": json.dumps(state)})
    with pytest.raises(CheckpointError, match=message):
        training.train(replace(config, resume=True))
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(CheckpointError, match="cannot be used"):
        training.train(replace(config, resume=True))


def test_a_folder_of_another_kind_of_run_is_refused(tmp_path):
    rows = dataset_from_arrays("rows", np.random.default_rng(0).random((40, 6)))
    stage = Stage(epochs=1)
    own = TrainConfig(
        sizes=(6, 3), pretrain=stage, out=str(tmp_path / "run"), tensorboard=False, device="cpu"
    )
    train(own, dataset=rows)
    training.train(make(tmp_path / "dictionary"))
    for resume in (False, True):
        with pytest.raises(CheckpointError, match="holds a run of fastae train, or a model"):
            training.train(make(tmp_path / "run", resume=resume))
        with pytest.raises(CheckpointError, match="holds a run of fastae sae train"):
            train(replace(own, out=str(tmp_path / "dictionary"), resume=resume), dataset=rows)
    with pytest.raises(CheckpointError, match="holds a sparse autoencoder"):
        load_checkpoint(tmp_path / "dictionary")
    with pytest.raises(FormatError, match="holds a run of fastae train"):
        training.load(own.out)
