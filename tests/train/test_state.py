"""The state of a run is checked before anything is done with it: every bad value is named with its file."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fastae.train import CheckpointError, Stage, TrainConfig, train
from fastae.train.state import RunState

MOMENTUM = {"optimizer": "sgd", "optimizer_options": ("momentum=0.9",)}
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "adam": {},
    "adamw": {"optimizer": "adamw"},
    "sgd": MOMENTUM,
    "adagrad": {"optimizer": "adagrad"},
    "adafactor": {"optimizer": "adafactor"},
}


@pytest.fixture
def stopped(make_config, interrupt) -> Callable[..., TrainConfig]:
    """A run that was interrupted within the second epoch of its first layer; resume it."""

    def make(**stage: Any) -> TrainConfig:
        settings = Stage(**{"epochs": 4, "batch_size": 10, "lr": 0.01, "patience": 3, **stage})
        config = make_config(pretrain=settings, checkpoint_seconds=1e9)
        interrupt(config, 6)
        return replace(config, resume=True)

    return make


def file_of(config: TrainConfig, name: str) -> Path:
    (path,) = Path(config.out or "").glob(f"checkpoint-*/{name}")
    return path


def refused(config: TrainConfig, tiny: Any, name: str, *words: str) -> None:
    """Resuming is one error in one line that names the file and the key, and trains nothing."""
    path = file_of(config, name)
    with pytest.raises(CheckpointError) as error:
        train(config, dataset=tiny)
    message = str(error.value)
    assert message.startswith(f"{path}: ") and "\n" not in message and len(message) < len(str(path)) + 200
    assert all(word in message for word in words), message
    assert path.exists()


# Tensors ----------------------------------------------------------------------------------------------------

Tensors = dict[str, torch.Tensor]


def one(tensors: Tensors, shape: tuple[int, ...], name: str = "") -> None:
    for key in [key for key in tensors if key.startswith("optimizer.0") and key.endswith(name)]:
        if tensors[key].dim():
            tensors[key] = torch.zeros(shape, dtype=tensors[key].dtype)


SHAPES = {"one element": (1,), "none": (0,), "a scalar": (), "twice as many": (10, 6), "transposed": (6, 5)}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_optimizer_state_of_another_shape_is_refused(tiny, stopped, optimizer, shape):
    """Fused optimizers would read and write memory of others."""
    config = stopped(**OPTIMIZERS[optimizer])
    path = file_of(config, "state.safetensors")
    tensors = load_file(path)
    one(tensors, SHAPES[shape])
    save_file(tensors, path)
    refused(config, tiny, path.name, "optimizer.0.", "expected torch.float32", str(list(SHAPES[shape])))


BAD_TENSORS: dict[str, tuple[Callable[[Tensors], Any], str]] = {
    "float64": (lambda t: t.update({k: v.double() for k, v in t.items()}), "expected torch.float32"),
    "integers": (lambda t: t.update({"optimizer.1.exp_avg": torch.ones(5, dtype=torch.int64)}), "int64"),
    "a vector of steps": (lambda t: t.update({"optimizer.2.step": torch.ones(6)}), "optimizer.2.step"),
    "a missing one": (lambda t: t.pop("optimizer.1.exp_avg_sq"), "optimizer.1.exp_avg_sq: is missing"),
    "an unknown one": (lambda t: t.update({"optimizer.1.sum": torch.ones(5)}), "optimizer.1.sum"),
    "a parameter too many": (lambda t: t.update({"optimizer.9.step": torch.ones(())}), "optimizer.9.step"),
    "a negative one": (lambda t: t.update({"optimizer.-1.step": torch.ones(())}), "optimizer.-1.step"),
    "no number": (lambda t: t.update({"optimizer.x.step": torch.ones(())}), "optimizer.x.step"),
    "no name": (lambda t: t.update({"optimizer.": torch.ones(())}), "optimizer."),
    "another kind": (lambda t: t.update({"extra": torch.ones(())}), "extra"),
    "best of another shape": (lambda t: t.update({"best.encoder.weight": torch.ones(2)}), "best.encoder."),
    "best missing": (lambda t: t.pop("best.decoder.bias"), "best.decoder.bias: is missing"),
    "best unknown": (lambda t: t.update({"best.x": torch.ones(2)}), "best.x"),
    "a long name": (lambda t: t.update({"y" * 9000: torch.ones(2)}), "yyy...yyy"),
}


@pytest.mark.parametrize("damage", BAD_TENSORS)
def test_tensors_that_do_not_fit_are_refused(tiny, stopped, damage):
    change, word = BAD_TENSORS[damage]
    config = stopped()
    path = file_of(config, "state.safetensors")
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    refused(config, tiny, path.name, word)


def test_scalars_and_groups_of_an_optimizer_are_checked_too(tiny, stopped):
    config = stopped()
    path = file_of(config, "state.json")
    values = json.loads(path.read_text())
    for scalars, word in (({"0.step": 3}, "0.step"), ([], "scalars"), (None, "scalars")):
        path.write_text(json.dumps({**values, "optimizer": {**values["optimizer"], "scalars": scalars}}))
        refused(config, tiny, path.name, word)
    for groups, word in ((None, "1 groups"), ([], "1 groups"), ([3], "objects"), ([{"lr": 1.0}], "amsgrad")):
        path.write_text(json.dumps({**values, "optimizer": {**values["optimizer"], "param_groups": groups}}))
        refused(config, tiny, path.name, word)


# Values -----------------------------------------------------------------------------------------------------


def row(**changes: Any) -> dict[str, Any]:
    return {"stage": "layer 1", "epoch": 1, "step": 4, "train_total": 0.5, **changes}


BAD_VALUES: list[tuple[str, Any, str]] = [
    ("stage", -1, "stage"),
    ("stage", 99, "stage"),
    ("stage", "0", "stage"),
    ("stage", 1.5, "stage"),
    ("epoch", 1e308, "epoch"),
    ("epoch", 10**30, "epoch"),
    ("epoch", 4, "epoch"),
    ("epoch", True, "epoch"),
    ("step", 5, "step"),
    ("step", None, "step"),
    ("stale", "x", "stale"),
    ("sums", "x", "sums"),
    ("sums", {}, "total"),
    ("sums", {"total": "x"}, "sums.total"),
    ("sums", {"total": float("nan")}, "total"),
    ("sums", {"total": 1.0, "x": 2.0}, "'x'"),
    ("best", "low", "best"),
    ("best", float("nan"), "best"),
    ("seconds", -1.0, "seconds"),
    ("seconds", float("inf"), "seconds"),
    ("seconds", 10**400, "seconds"),
    ("budget", -5, "budget"),
    ("budget", 10**30, "budget"),
    ("data", 3, "data"),
    ("finished", 1, "finished"),
    ("finished", True, "stage"),
    ("done", {"a": "x"}, "done"),
    ("done", [], "done"),
    ("history", {}, "history"),
    ("history", [1], "history[0]"),
    ("history", [row(stage=3)], "[0].stage"),
    ("history", [row(), row(epoch="2")], "history[1].epoch"),
    ("history", [row(x=1)], "'x'"),
    ("history", [row(train_total="x")], "history[0].train_total"),
    ("history", [{}], "stage is missing"),
    ("optimizer", 3, "optimizer"),
    ("optimizer", None, "optimizer"),
]


@pytest.mark.parametrize(("key", "value", "word"), BAD_VALUES, ids=lambda value: str(value)[:30])
def test_values_that_make_no_sense_are_refused(tiny, stopped, key, value, word):
    config = stopped()
    path = file_of(config, "state.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    refused(config, tiny, path.name, word)


def test_a_state_is_what_it_was_after_json():
    state = RunState("abc", 5, 1, 2, 3, 0.5, [row()], False, {"total": 1.5}, 0.25, 2, {"layer 1": 4})
    assert RunState.from_json(json.loads(json.dumps(state.to_json())), within_stage=True) == state
    fresh = RunState("abc", 5)
    assert RunState.from_json(fresh.to_json(), within_stage=False) == fresh
