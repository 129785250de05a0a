"""Runs whose processes hold parts of the parameters: as of one process, also where their number changes."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fastae.errors import CheckpointError
from fastae.train import Stage, TrainConfig, load_checkpoint, train
from fastae.train.checkpoint import gather_checkpoint
from tests.distributed.runs import assert_same, config, dataset, of_one_process, train_until_saved, trained
from tests.distributed.test_data_parallel import CASES, DEEP, TOLERANCE
from tests.processes import Failed

PICKED = ("higher order", "clipping", "early stopping", "deep penalties", "classifier")


@pytest.mark.parametrize("case", PICKED)
def test_two_processes_train_as_one(two, tmp_path, case):
    settings = config(tmp_path / "run", **CASES[case], shard="weights")
    first, second = two.run(trained, settings)
    assert_same(first, second, 0.0)
    assert_same(first, of_one_process(replace(settings, shard=None)), TOLERANCE)


def test_float32_differs_by_rounding(two, tmp_path):
    """Sums of gradients take another path there."""
    settings = config(tmp_path / "run", **DEEP, precision="float32", shard="weights")
    assert_same(two.run(trained, settings)[0], of_one_process(replace(settings, shard=None)), 1e-5)


@pytest.fixture(scope="module")
def stopped(two, tmp_path_factory) -> TrainConfig:
    """A run that two processes have begun, in the middle of its first stage."""
    stage = Stage(epochs=2, batch_size=10, lr=0.01, patience=3)
    settings = config(
        tmp_path_factory.mktemp("runs") / "run",
        **{**DEEP, "pretrain": stage, "classifier": True, "supervised": stage},
        corruption=("masking:0.2",),
        shard="weights",
    )
    two.run(train_until_saved, settings)
    return settings


@pytest.fixture(scope="module")
def whole(stopped: TrainConfig) -> Any:
    return of_one_process(replace(stopped, shard=None))


def copied(settings: TrainConfig, to: Path, **changes: Any) -> TrainConfig:
    """A copy of a run that goes on."""
    assert settings.out is not None
    shutil.copytree(settings.out, to)
    return replace(settings, out=str(to), resume=True, **changes)


def test_the_checkpoint_holds_a_part_of_each_process(stopped):
    (folder,) = Path(str(stopped.out)).glob("checkpoint-*")
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model", "state", "state.json"]
    for name in ("model", "state"):
        files = sorted((folder / name).iterdir())
        assert len(files) == 2 and {file.suffix for file in files} == {".safetensors"}


def test_parts_load_as_the_whole_that_they_are_converted_to(stopped, tmp_path):
    gather_checkpoint(str(stopped.out), tmp_path / "whole")
    assert sorted(path.name for path in (tmp_path / "whole").iterdir()) == [
        "config.json",
        "model.safetensors",
        "state.json",
        "state.safetensors",
    ]
    parts, whole = load_checkpoint(str(stopped.out)).stack, load_checkpoint(tmp_path / "whole").stack
    for name, value in whole.state_dict().items():
        assert torch.equal(parts.state_dict()[name], value), name
    with pytest.raises(CheckpointError, match=r"^out: .* is there already"):
        gather_checkpoint(str(stopped.out), tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"shard_size": 2}, {"shard": "data"}], ids=str)
def test_four_processes_go_on(four, stopped, whole, tmp_path, changes):
    settings = copied(stopped, tmp_path / "run", **changes)
    assert_same(four.run(trained, settings)[3], whole, TOLERANCE)


def test_one_process_goes_on_and_two_after_it(two, stopped, whole, tmp_path):
    settings = copied(stopped, tmp_path / "run")
    train_until_saved(settings)
    (first, second) = sorted(Path(str(settings.out)).glob("checkpoint-*"))
    assert (second / "model.safetensors").is_file() and (first / "model").is_dir()
    assert_same(two.run(trained, settings)[1], whole, TOLERANCE)


@pytest.mark.parametrize("part", ["first", "last"])
@pytest.mark.parametrize("name", ["model", "state"])
def test_a_missing_part_is_named(stopped, tmp_path, name, part):
    settings = copied(stopped, tmp_path / "run")
    (folder,) = Path(str(settings.out)).glob("checkpoint-*")
    sorted((folder / name).iterdir())[-(part == "last")].unlink()
    with pytest.raises(CheckpointError, match=f"{name}: "):
        train(settings, dataset=dataset())


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "processes that do not divide": (
        {"shard": "weights", "shard_size": 3},
        "shard_size: expected a divisor of the 2 processes, got 3",
    ),
    "a size without parts": (
        {"shard_size": 2},
        "shard_size: expected 0 unless parameters are split, got 2",
    ),
    "an optimizer that needs whole parameters": (
        {"shard": "weights", "pretrain": Stage(epochs=1, optimizer="Adafactor")},
        "pretrain.optimizer: Adafactor cannot update parts",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_split_is_refused(two, tmp_path, case):
    changes, message = REFUSED[case]
    with pytest.raises(Failed) as failed:
        two.run(trained, config(tmp_path / "run", **changes))
    kinds, messages, elsewhere, _ = zip(*failed.value.args[0], strict=True)
    assert set(kinds) == {"ValueError"} and all(text.startswith(message) for text in messages)
    assert elsewhere == (False, True) and not (tmp_path / "run").exists()
