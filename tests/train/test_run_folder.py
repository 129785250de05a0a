"""Refusals before training, and the files that a run leaves."""

import csv
import json
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastae.train import (
    CheckpointError,
    Stage,
    TrainConfig,
    dataset_from_arrays,
    train,
)
from fastae.train.data import split
from fastae.train.folder import locked
from fastae.train.reporting import COLUMNS, Log

NONE = Stage(epochs=0)
STEPS = 32  # of the tiny run of two epochs: four stages of eight steps
STAGES = ["layer 1", "layer 2", "fine-tuning", "classifier"]


# Refusals ---------------------------------------------------------------------------------------------------


def test_a_folder_that_holds_a_run_is_refused(tiny, make_config):
    config = make_config()
    result = train(config, dataset=tiny)
    files = {path: path.read_bytes() for path in result.path.rglob("*") if path.is_file()}
    with pytest.raises(CheckpointError, match=r"^out: .*--resume"):
        train(replace(config, seed=1), dataset=tiny)
    assert {path: path.read_bytes() for path in result.path.rglob("*") if path.is_file()} == files


def test_without_out_a_free_folder_is_taken(tiny, make_config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    paths = [train(make_config(out=None), dataset=tiny).path for _ in range(3)]
    assert paths == [Path("runs/tiny"), Path("runs/tiny-2"), Path("runs/tiny-3")]


def test_out_that_is_a_file_or_below_one_is_refused(tiny, make_config, tmp_path):
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(CheckpointError, match=f"^out: {re.escape(str(out))}"):
            train(make_config(out=str(out)), dataset=tiny)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("shape", [(44, 6), (45, 5)], ids=["rows", "columns"])
def test_resuming_with_other_data_is_refused(tiny, make_config, interrupt, shape):
    config = make_config()
    interrupt(config, 6)
    rows, columns = shape
    other = dataset_from_arrays("other", np.full(shape, 0.5, np.float32), np.arange(rows) % 3, scaling="none")
    with pytest.raises(CheckpointError, match=rf"other data than other is now \({rows} rows of {columns}\)"):
        train(replace(config, resume=True), dataset=other)


def test_resuming_a_classifier_without_labels_is_refused(tiny, make_config, interrupt):
    config = make_config()
    interrupt(config, 6)
    unlabelled = dataset_from_arrays("unlabelled", tiny.train.read(), scaling="none")
    with pytest.raises(ValueError, match=r"^classifier: .*unlabelled"):
        train(replace(config, resume=True), dataset=unlabelled)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"out": "nowhere"}, "nowhere: no such folder"),
        ({"out": "."}, "holds no checkpoint"),
    ],
)
def test_resuming_nothing_is_refused(tiny, make_config, tmp_path, monkeypatch, changes, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=message):
        train(make_config(resume=True, **changes), dataset=tiny)


@pytest.mark.parametrize("damage", ["history", "stage", "sums", "optimizer", "seconds"])
def test_a_state_that_lacks_a_key_is_a_checkpoint_error_that_names_the_file(
    tiny, make_config, interrupt, damage
):
    config = make_config()
    interrupt(config, 6)
    (path,) = Path(config.out).glob("checkpoint-*/state.json")
    values = json.loads(path.read_text())
    if damage == "optimizer":
        values["optimizer"] = {}
    else:
        del values[damage]
    path.write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=re.escape("state.json")):
        train(replace(config, resume=True), dataset=tiny)


def test_a_kept_configuration_that_does_not_fit_is_a_checkpoint_error(tiny, make_config, interrupt):
    config = make_config()
    interrupt(config, 6)
    (path,) = Path(config.out).glob("checkpoint-*/config.json")
    kept = json.loads(path.read_text())
    for change in ({"pretrain": 5}, {"pretrain": {"epochs": -3}}, {"nonsense": 1}, {"validation": 7}):
        path.write_text(json.dumps({**kept, "train": {**kept["train"], **change}}))
        with pytest.raises(CheckpointError, match=r"config.json: train\."):
            train(replace(config, resume=True), dataset=tiny)


# One process per folder -------------------------------------------------------------------------------------


def test_a_run_that_another_process_trains_is_refused(tiny, make_config, interrupt, resume, assert_same_run):
    config = make_config("parts")
    interrupt(config, 6)
    before = {path: path.read_bytes() for path in Path(config.out).rglob("*") if path.is_file()}
    with locked(Path(config.out)), pytest.raises(CheckpointError, match=rf"in use: process {os.getpid()} "):
        resume(config)
    assert {path: path.read_bytes() for path in Path(config.out).rglob("*") if path.is_file()} == before
    assert_same_run(train(make_config("whole"), dataset=tiny), resume(config))


def test_a_folder_where_another_process_starts_a_run_is_refused(tiny, make_config):
    config = make_config()
    Path(config.out).mkdir()
    with locked(Path(config.out)), pytest.raises(CheckpointError, match=f"^out: {config.out} is in use"):
        train(config, dataset=tiny)
    assert not list(Path(config.out).iterdir())


def test_the_lock_of_a_killed_process_is_none(tiny, make_config):
    config = make_config()
    Path(config.out).mkdir()
    (Path(config.out) / ".lock").write_text("12345")
    train(config, dataset=tiny)
    assert not (Path(config.out) / ".lock").exists()


@pytest.mark.parametrize("value", [-0.5, 1.5])
def test_bce_over_data_outside_the_unit_interval_is_refused_before_training(tiny, make_config, value):
    x = tiny.train.read()
    x[-1, -1] = value
    config = make_config(classifier=False)
    with pytest.raises(ValueError, match=rf"^loss: bce .*{value:g}.*(minmax|mse)"):
        train(config, dataset=dataset_from_arrays("wide", x, scaling="none"))
    assert not Path(config.out).exists()


def test_mse_takes_data_outside_the_unit_interval(tiny, one_layer):
    data = dataset_from_arrays("wide", 5 * tiny.train.read() - 2, scaling="none")
    assert train(one_layer(loss=("mse",)), dataset=data).history


def refused(config: TrainConfig, dataset: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        train(config, dataset=dataset)
    assert not Path(config.out).exists()


def test_a_classifier_without_labels_is_refused_before_training(tiny, make_config):
    refused(make_config(), dataset_from_arrays("unlabelled", tiny.train.read()), "^classifier: .*unlabelled")


def test_a_classifier_of_one_class_is_refused_before_training(tiny, make_config):
    """Not after hours of pretraining."""
    one = dataset_from_arrays("one", tiny.train.read(), np.zeros(45, int), scaling="none")
    refused(make_config(), one, "class")


def test_sizes_that_do_not_fit_the_data_are_refused_before_training(tiny, make_config):
    refused(make_config(sizes=(7, 5)), tiny, "^sizes: .*7.*tiny.*6")


def test_too_few_rows_for_the_validation_share_are_refused_by_name(make_config):
    refused(make_config(classifier=False), dataset_from_arrays("few", np.ones((2, 6))), "validation")


@pytest.mark.parametrize("device", ["abc", "cuda:99", "cpu:x"])
def test_a_device_that_cannot_be_used_is_refused_before_training(tiny, make_config, device):
    refused(make_config(device=device), tiny, f"^device: '{device}'")


def test_by_default_the_stack_has_codes_of_512_and_256(tiny, make_config):
    stages = {"pretrain": NONE, "classifier": False, "finetune": NONE}
    assert train(make_config(sizes=(), **stages), dataset=tiny).stack.sizes == [6, 512, 256]


# Files of a run ---------------------------------------------------------------------------------------------


def read_log(path: Path) -> list[dict[str, str]]:
    with (path / "log.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_log_csv_is_the_history(tiny, make_config):
    result = train(make_config(contractive=(0.1,)), dataset=tiny)
    rows = read_log(result.path)
    assert tuple(rows[0]) == COLUMNS
    assert len(rows) == len(result.history) == 8
    for text, row in zip(rows, result.history, strict=True):
        assert {name: value for name, value in text.items() if value} == {k: str(v) for k, v in row.items()}


def test_the_least_loss_of_validation_rows_is_that_of_the_stages_input(tiny, make_config):
    result = train(make_config(classifier=False), dataset=tiny)
    _, rows = split(tiny.train, 0.2, result.config.seed)
    least = {row["stage"]: row["validation_least"] for row in result.history}
    assert least["layer 1"] == least["fine-tuning"] and least["layer 2"] > 0.0
    x = torch.from_numpy(rows.read()).double()
    entropy = torch.special.entr(x) + torch.special.entr(1 - x)
    assert least["layer 1"] == pytest.approx(float(entropy.sum(1).mean()), rel=1e-5)


def test_log_csv_grows_with_every_epoch(tiny, make_config, updates):
    config, lengths = make_config(), []
    train(
        config, dataset=tiny, progress=updates(lambda done: lengths.append(len(read_log(Path(config.out)))))
    )
    assert lengths == [step // 4 for step in (0, *range(STEPS))]


@pytest.mark.parametrize(("call", "kept"), [(1, "there is no checkpoint yet"), (3, "checkpoints are intact")])
def test_a_log_that_cannot_be_written_is_named(
    tiny, make_config, resume, assert_same_run, monkeypatch, call, kept
):
    config, calls = make_config(checkpoint_seconds=0.0), []

    def full(self: Log, row: Any) -> None:
        calls.append(row)
        if len(calls) == call:
            raise OSError(28, "No space left on device")
        write(self, row)

    write = Log.write
    with monkeypatch.context() as patch:
        patch.setattr(Log, "write", full)
        if call == 1:
            config = replace(config, checkpoint_seconds=1e9)
        where = re.escape(f"{config.out}: could not write log.csv (No space left on device); {kept}")
        with pytest.raises(CheckpointError, match=f"^{where}$"):
            train(config, dataset=tiny)
    if call == 3:
        assert_same_run(train(make_config("whole"), dataset=tiny), resume(config))


@pytest.fixture
def killed(tiny, updates) -> Callable[[TrainConfig, int], None]:
    """Continues a run from its last checkpoint and ends it after ``steps`` steps without another one."""

    class Killed(BaseException):
        pass

    def run(config: TrainConfig, steps: int) -> None:
        def act(done: int) -> None:
            if done == steps:
                raise Killed

        with pytest.raises(Killed):
            train(replace(config, resume=True), dataset=tiny, progress=updates(act))

    return run


def test_epochs_after_the_last_checkpoint_are_logged_once(tiny, make_config, interrupt, killed, resume):
    """Killed: two epochs are in log.csv that the last checkpoint knows nothing of."""
    config = make_config(epochs=4, checkpoint_seconds=1e9)
    interrupt(config, 6)
    killed(config, 9)
    assert len(read_log(Path(config.out))) == 3
    result = resume(config)
    assert [(row["stage"], int(row["epoch"])) for row in read_log(result.path)] == [
        (stage, epoch) for stage in STAGES for epoch in range(1, 5)
    ]


def tensorboard_scalars(path: Path) -> dict[str, list[tuple[int, float]]]:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(path / "tensorboard"))
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def of_history(history: list[dict[str, Any]], name: str) -> dict[str, list[tuple[int, Any]]]:
    """Every epoch's value, by the steps since the run began."""
    scalars: dict[str, list[tuple[int, Any]]] = {}
    before, previous = 0, {"stage": history[0]["stage"], "step": 0}
    for row in history:
        if row["stage"] != previous["stage"]:
            before += previous["step"]
        previous = row
        pair = (before + row["step"], pytest.approx(row[name], rel=1e-6))
        scalars.setdefault(f"{row['stage']}/{name}", []).append(pair)
    return scalars


def test_tensorboard_has_every_epoch(tiny, make_config):
    result = train(make_config(tensorboard=True), dataset=tiny)
    scalars = tensorboard_scalars(result.path)
    for name in ("train_total", "validation_total", "lr"):
        expected = of_history(result.history, name)
        assert {tag: scalars.get(tag) for tag in expected} == expected


@pytest.mark.parametrize("after", [6, 13, 30])
def test_tensorboard_has_every_epoch_after_an_interruption(tiny, make_config, interrupt, resume, after):
    config = make_config(tensorboard=True)
    interrupt(config, after)
    result = resume(config)
    scalars = tensorboard_scalars(result.path)
    expected = of_history(result.history, "train_total")
    assert {tag: scalars.get(tag) for tag in expected} == expected


@pytest.mark.parametrize("after", [2, 6, 14])
def test_tensorboard_has_the_epochs_after_the_last_checkpoint_once(
    tiny, make_config, interrupt, killed, resume, after
):
    """After 2 steps the checkpoint knows of no epoch at all."""
    config = make_config(tensorboard=True, checkpoint_seconds=1e9)
    interrupt(config, after)
    killed(config, 15)
    result = resume(config)
    scalars = tensorboard_scalars(result.path)
    expected = of_history(result.history, "train_total")
    assert {tag: scalars.get(tag) for tag in expected} == expected


@pytest.mark.parametrize("writes", [0, 1, 5])
def test_a_run_goes_on_without_the_event_file_that_cannot_be_written(
    tiny, make_config, monkeypatch, capfd, writes
):
    records = pytest.importorskip("tensorboard.summary.writer.record_writer").RecordWriter
    left = iter(range(writes))
    write = records.write

    def fail(self: Any, data: bytes) -> None:
        if next(left, None) is None:
            raise OSError(28, "No space left on device")
        write(self, data)

    monkeypatch.setattr(records, "write", fail)
    with pytest.warns(UserWarning, match="tensorboard: .*No space left on device.*goes on") as caught:
        result = train(make_config(tensorboard=True), dataset=tiny)
    assert len(caught) == 1 and capfd.readouterr().err == ""
    assert len(read_log(result.path)) == len(result.history) == 8


def test_without_tensorboard_there_are_no_event_files(tiny, make_config):
    result = train(make_config(), dataset=tiny)
    assert {path.name for path in result.path.iterdir()} == {"log.csv", "checkpoint-000001"}


def test_checkpoints_are_written_as_time_goes_by(tiny, make_config, updates):
    config, numbers = make_config(checkpoint_seconds=0.0), []

    def act(done: int) -> None:
        numbers.append(max((int(p.name[11:]) for p in Path(config.out).glob("checkpoint-*")), default=0))

    train(config, dataset=tiny, progress=updates(act))
    assert numbers[0] == numbers[1] == 0
    assert all(number >= done - 2 for done, number in enumerate(numbers))  # one may be in flight


def test_by_default_nothing_is_printed(tiny, make_config, capfd):
    train(make_config(), dataset=tiny)
    assert capfd.readouterr() == ("", "")
