"""No interruption changes a figure: a run that goes on ends as one that was never stopped."""

import csv
import json
import os
import signal
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fastae.train import (
    CheckpointError,
    Stage,
    TrainConfig,
    TrainingError,
    TrainResult,
    load_checkpoint,
    train,
)
from tests.support import OPTIMIZERS

STEPS = 32  # of the tiny run of two epochs: four stages of eight steps


# Interrupted and resumed ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def uninterrupted(tiny, tmp_path_factory) -> dict[str, Any]:
    """Finished runs by the name of their kind, made when first asked for."""
    return {"folder": tmp_path_factory.mktemp("uninterrupted")}


@pytest.mark.parametrize("after", range(1, STEPS))
def test_a_run_interrupted_after_any_step_ends_as_if_it_was_not(
    tiny, make_config, uninterrupted, interrupt, resume, assert_same_run, after
):
    if "whole" not in uninterrupted:
        whole = replace(make_config(), out=str(uninterrupted["folder"] / "whole"))
        uninterrupted["whole"] = train(whole, dataset=tiny)
    config = make_config()
    interrupt(config, after)
    state = load_checkpoint(config.out, with_state=True).state.values
    assert not state["finished"] and len(state["history"]) == (after - 1) // 4
    assert state["stage"] * 8 + state["epoch"] * 4 + state["step"] == after
    result = resume(config)
    assert_same_run(uninterrupted["whole"], result)
    with open(result.path / "log.csv", newline="") as file:
        assert [(row["stage"], int(row["epoch"])) for row in csv.DictReader(file)] == [
            (row["stage"], row["epoch"]) for row in result.history
        ]


def test_the_seconds_before_an_interruption_count(tiny, make_config, interrupt, resume):
    """Of an epoch that it cut in two, as of one that was whole."""
    config = make_config()
    kept = []
    for done in range(4):
        interrupt(replace(config, resume=done > 0), 1)
        kept.append(load_checkpoint(config.out, with_state=True).state.values["seconds"])
    assert 0.0 < kept[0] < kept[1] < kept[2] < kept[3]
    assert resume(config).history[0]["seconds"] >= round(kept[2], 3)


@pytest.mark.parametrize("share", [0.06, 0.2, 0.35, 0.5, 0.65, 0.8, 0.95])
def test_early_stopping_and_schedules_survive_an_interruption(
    tiny, make_config, uninterrupted, updates, interrupt, resume, assert_same_run, share
):
    stage = Stage(
        epochs=12,
        batch_size=10,
        lr=0.3,
        patience=2,
        schedule="CosineAnnealingLR",
        clip_norm=0.5,
        optimizer="sgd",
        optimizer_options=("momentum=0.9",),
    )
    config = make_config(pretrain=stage, finetune=stage, supervised=stage)
    if "stopping" not in uninterrupted:
        progress = updates()
        whole = replace(config, out=str(uninterrupted["folder"] / "stopping"))
        uninterrupted["stopping"] = train(whole, dataset=tiny, progress=progress), progress.steps
    whole, total = uninterrupted["stopping"]
    assert total < 4 * 12 * 4  # or nothing was stopped
    interrupt(config, round(share * total))
    assert_same_run(whole, resume(config))


def test_a_run_interrupted_at_every_step_ends_as_if_it_was_not(
    tiny, make_config, interrupt, resume, assert_same_run
):
    stage = Stage(epochs=1, batch_size=20, lr=0.01)
    stages = {"pretrain": stage, "finetune": stage, "supervised": stage}
    whole = train(make_config("whole", **stages), dataset=tiny)
    config = make_config("parts", **stages)
    for done in range(7):
        interrupt(replace(config, resume=done > 0), 1)
    assert_same_run(whole, resume(config))


@pytest.mark.parametrize(
    ("schedule", "options"),
    [
        ("MultiStepLR", ("milestones=[2,7,10]",)),
        ("StepLR", ("step_size=4",)),
        ("OneCycleLR", ()),
        ("LinearLR", ()),
        ("ConstantLR", ()),
        ("PolynomialLR", ()),
        ("ExponentialLR", ("gamma=0.9",)),
        ("CosineAnnealingWarmRestarts", ("T_0=5",)),
        ("CyclicLR", ("base_lr=0.001", "max_lr=0.1", "step_size_up=3", "cycle_momentum=false")),
    ],
)
def test_every_schedule_goes_on_where_it_was(
    tiny, one_layer, interrupt, resume, assert_same_run, schedule, options
):
    stage = Stage(epochs=3, batch_size=10, schedule=schedule, schedule_options=options)
    whole = train(one_layer("whole", pretrain=stage), dataset=tiny)
    config = one_layer("parts", pretrain=stage)
    interrupt(config, 6)
    assert_same_run(whole, resume(config))


@pytest.mark.parametrize("precision", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_goes_on_where_it_was(
    tiny, one_layer, interrupt, resume, assert_same_run, optimizer, precision
):
    stage = Stage(epochs=3, batch_size=10, optimizer=optimizer)
    whole = train(one_layer("whole", pretrain=stage, precision=precision), dataset=tiny)
    config = one_layer("parts", pretrain=stage, precision=precision)
    interrupt(config, 6)
    assert_same_run(whole, resume(config))


def test_streamed_runs_resume_exactly(tiny, make_config, interrupt, resume, assert_same_run):
    whole = train(make_config("whole", memory_gib=0.0), dataset=tiny)
    config = make_config("parts", memory_gib=0.0)
    interrupt(config, 14)
    assert_same_run(whole, resume(config))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("fastae-reader")]


def test_sigterm_saves_as_ctrl_c_does(tiny, make_config, updates, resume, assert_same_run):
    config = make_config()

    def act(done: int) -> None:
        if done == 9:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt):
        train(config, dataset=tiny, progress=updates(act))
    assert_same_run(train(make_config("whole"), dataset=tiny), resume(config))


def test_a_second_ctrl_c_does_not_wait_for_the_step(tiny, make_config, updates):
    config = make_config()

    def act(done: int) -> None:
        if done == 5:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            for _ in range(1000):  # handlers run between bytecodes
                pass
            pytest.fail("went on")

    with pytest.raises(KeyboardInterrupt):
        train(config, dataset=tiny, progress=updates(act))
    assert not list(Path(config.out).glob("checkpoint-*"))


@pytest.mark.parametrize("how", ["finished", "interrupted", "failed"])
def test_signal_handlers_are_given_back(tiny, make_config, interrupt, how):
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    if how == "interrupted":
        interrupt(make_config(), 3)
    elif how == "failed":
        broken = make_config(
            pretrain=Stage(epochs=2, batch_size=10, lr=1e30), loss=("mse",), activation=("linear",)
        )
        with pytest.raises(TrainingError):
            train(broken, dataset=tiny)
    else:
        train(make_config(), dataset=tiny)
    assert [signal.getsignal(number) for number in numbers] == before


def test_training_works_outside_the_main_thread(tiny, make_config, assert_same_run):
    results = []
    thread = threading.Thread(target=lambda: results.append(train(make_config("thread"), dataset=tiny)))
    thread.start()
    thread.join()
    assert_same_run(train(make_config("main"), dataset=tiny), results[0])


def test_an_error_in_the_progress_stops_the_run_and_it_resumes(
    tiny, make_config, updates, resume, assert_same_run
):
    config = make_config(checkpoint_seconds=0.0)

    def act(done: int) -> None:
        if done == 11:
            raise OSError("the terminal is gone")

    with pytest.raises(OSError, match="terminal"):
        train(config, dataset=tiny, progress=updates(act))
    assert_same_run(train(make_config("whole"), dataset=tiny), resume(config))


def test_resuming_a_finished_run_trains_nothing(tiny, make_config, updates, assert_same_run):
    config = make_config()
    result = train(config, dataset=tiny)
    files = {path: path.read_bytes() for path in result.path.rglob("*") if path.is_file()}
    progress = updates()
    assert_same_run(result, train(replace(config, resume=True), dataset=tiny, progress=progress))
    assert not progress.stages
    assert {path: path.read_bytes() for path in result.path.rglob("*") if path.is_file()} == files


def test_resuming_follows_the_configuration_of_the_run(tiny, make_config, interrupt, assert_same_run):
    whole = train(make_config("whole"), dataset=tiny)
    config = make_config("parts")
    interrupt(config, 6)
    other = TrainConfig(out=config.out, resume=True, seed=8, memory_gib=0.5, pretrain=Stage(epochs=1, lr=0.5))
    with pytest.warns(UserWarning, match=r"keeps its own seed, pretrain.epochs, pretrain.lr$") as caught:
        result = train(other, dataset=tiny)
    assert len(caught) == 1 and caught[0].filename == __file__
    assert_same_run(whole, result)
    kept = load_checkpoint(config.out).config
    assert (kept["seed"], kept["memory_gib"], kept["resume"]) == (config.seed, 0.5, False)


# Trained further --------------------------------------------------------------------------------------------


def more(config: TrainConfig, **epochs: int) -> TrainConfig:
    """The same run, continued with more epochs of some stages."""
    stages = {name: replace(getattr(config, name), epochs=count) for name, count in epochs.items()}
    return replace(config, resume=True, **stages)


def epochs_of(result: TrainResult) -> dict[str, list[int]]:
    epochs: dict[str, list[int]] = {}
    for row in result.history:
        epochs.setdefault(row["stage"], []).append(row["epoch"])
    return epochs


def test_a_finished_run_can_be_trained_further(tiny, make_config, recwarn):
    config = make_config(checkpoint_seconds=0.0)
    first = train(config, dataset=tiny)
    result = train(more(config, pretrain=5, supervised=3), dataset=tiny)
    assert epochs_of(result) == {
        "layer 1": [1, 2, 3, 4, 5],
        "layer 2": [1, 2, 3, 4, 5],
        "fine-tuning": [1, 2],
        "classifier": [1, 2, 3],
    }
    assert result.history[: len(first.history)] == first.history
    assert not torch.equal(
        first.stack.autoencoders[0].encoder.weight, result.stack.autoencoders[0].encoder.weight
    )
    assert result.history[-1]["train_total"] < first.history[-1]["train_total"]
    assert not recwarn
    assert load_checkpoint(config.out).config["pretrain"]["epochs"] == 5
    again = train(replace(config, resume=True, supervised=Stage(epochs=30)), dataset=tiny)
    assert epochs_of(again)["classifier"] == list(range(1, 31))


def test_a_schedule_goes_on_over_the_longer_stage(tiny, one_layer):
    stage = Stage(epochs=2, batch_size=10, lr=0.5, schedule="LinearLR", schedule_options=("end_factor=0",))
    config = one_layer(pretrain=stage)
    train(config, dataset=tiny)
    rates = [row["lr"] for row in train(more(config, pretrain=4), dataset=tiny).history]
    whole = [row["lr"] for row in train(one_layer("whole", replace(stage, epochs=4)), dataset=tiny).history]
    assert rates[2:] == pytest.approx(whole[2:])


def test_stages_can_be_added_to_a_finished_run(tiny, make_config):
    config = make_config(finetune=Stage(epochs=0), classifier=False)
    train(config, dataset=tiny)
    added = replace(more(config, finetune=3), classifier=True)
    result = train(added, dataset=tiny)
    assert list(epochs_of(result)) == ["layer 1", "layer 2", "fine-tuning", "classifier"]
    assert epochs_of(result)["fine-tuning"] == [1, 2, 3] and result.classifier is not None
    assert load_checkpoint(config.out).classifier is not None


@pytest.mark.parametrize("after", [1, 9, 17, 23])
def test_a_run_that_is_trained_further_resumes_exactly(
    tiny, make_config, updates, interrupt, resume, assert_same_run, after
):
    def finished(name: str) -> TrainConfig:
        config = make_config(name)
        train(config, dataset=tiny)
        return more(config, pretrain=4, supervised=4)

    whole = train(finished("whole"), dataset=tiny)
    config = finished("parts")
    interrupt(config, after)
    assert_same_run(whole, resume(config))


@pytest.mark.parametrize("after", [2, 14, 30])
def test_an_interrupted_run_takes_more_epochs(tiny, make_config, interrupt, after):
    """In the stage where it is, in those to come, and at the end in those that are over."""
    config = make_config(finetune=Stage(epochs=0))
    interrupt(config, min(after, 22))
    result = train(more(config, pretrain=3, finetune=2, supervised=4), dataset=tiny)
    assert {stage: max(epochs) for stage, epochs in epochs_of(result).items()} == {
        "layer 1": 3,
        "layer 2": 3,
        "fine-tuning": 2,
        "classifier": 4,
    }
    assert all(sorted(epochs) == list(range(1, len(epochs) + 1)) for epochs in epochs_of(result).values())


def test_a_run_saved_before_an_option_existed_goes_on_with_its_default(
    tiny, make_config, interrupt, resume, assert_same_run
):
    whole = train(make_config("whole"), dataset=tiny)
    config = make_config("parts")
    interrupt(config, STEPS - 2)  # in the classifier's stage
    for file in Path(config.out).glob("checkpoint-*/config.json"):
        values = json.loads(file.read_text())
        assert values["train"].pop("supervised_input_dropout") == 0.0
        file.write_text(json.dumps(values))
    assert_same_run(whole, resume(config))


def test_a_run_can_be_moved_and_resumed(tiny, make_config, interrupt, assert_same_run, tmp_path):
    whole = train(make_config("whole"), dataset=tiny)
    config = make_config("parts")
    interrupt(config, 6)
    moved = Path(config.out).rename(tmp_path / "moved")
    result = train(TrainConfig(out=str(moved), resume=True), dataset=tiny)
    assert_same_run(whole, result)
    assert result.path == moved and not Path(config.out).exists()


def test_resuming_from_a_single_checkpoint_does_not_write_into_it(tiny, make_config, interrupt, resume):
    config = make_config()
    interrupt(config, 6)
    (checkpoint,) = Path(config.out).glob("checkpoint-*")
    before = {path.name for path in checkpoint.iterdir()}
    try:
        resume(replace(config, out=str(checkpoint)))
    except CheckpointError as error:
        assert str(checkpoint) in str(error)
    assert {path.name for path in checkpoint.iterdir()} == before
