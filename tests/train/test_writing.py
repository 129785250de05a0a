"""Checkpoints written in a thread: training goes on meanwhile, and no write is lost or half done."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from fastae.errors import CheckpointError
from fastae.train import checkpoint as checkpoint_module
from fastae.train import load_checkpoint, train
from fastae.train.stage import Session
from fastae.train.writing import BackgroundWriter, Tensors


@pytest.fixture
def writer() -> Iterator[BackgroundWriter]:
    with BackgroundWriter() as writer:
        yield writer


def fail(*args: Any) -> None:
    raise OSError(28, "No space left on device")


def test_copies_keep_their_values_and_their_memory(writer):
    """Also where a later checkpoint has other tensors."""
    weight, seen, released = torch.zeros(3, 2).t(), [], threading.Event()

    def write(copies: Tensors) -> None:
        assert released.wait(10)
        seen.append({name: (copy.clone(), copy.data_ptr()) for name, copy in copies["model"].items()})

    writer.submit({"model": [("weight", weight), ("bias", torch.ones(2))]}, write)
    weight.fill_(1.0)
    released.set()
    writer.submit({"model": iter([("weight", weight), ("bias", torch.ones(3))])}, write)
    writer.wait()
    first, second = seen
    assert torch.equal(first["weight"][0], torch.zeros(2, 3)) and first["weight"][0].is_contiguous()
    assert torch.equal(second["weight"][0], torch.ones(2, 3)) and torch.equal(
        second["bias"][0], torch.ones(3)
    )
    assert first["weight"][1] == second["weight"][1]


def test_one_write_is_in_flight_and_the_order_is_kept(writer):
    events: list[str] = []

    def slow(copies: Tensors) -> None:
        events.append("first begins")
        time.sleep(0.05)
        events.append("first ends")

    writer.submit({}, slow)
    writer.submit({}, lambda copies: events.append("second"))
    writer.wait()
    assert events == ["first begins", "first ends", "second"]


def test_an_error_surfaces_once_in_the_next_call_or_at_the_end():
    with BackgroundWriter() as writer:
        writer.submit({}, fail)
        with pytest.raises(OSError, match="No space left"):
            writer.submit({}, fail)
        writer.submit({}, fail)
        with pytest.raises(OSError, match="No space left"):
            writer.wait()
    with pytest.raises(OSError, match="No space left"), BackgroundWriter() as writer:
        writer.submit({}, fail)
    with pytest.raises(OSError, match="No space left") as caught, BackgroundWriter() as writer:
        writer.submit({}, fail)
        raise ValueError("of the training")
    assert isinstance(caught.value.__context__, ValueError)


@pytest.fixture
def save_at(monkeypatch) -> Any:
    """Has runs of four steps per epoch write a checkpoint after certain steps of their first stage."""

    def choose(*steps: int) -> None:
        def due(session: Session) -> bool:
            return session.state.stage == 0 and session.state.epoch * 4 + session.state.step in steps

        monkeypatch.setattr(Session, "checkpoint_is_due", property(due))

    return choose


def before_writing(monkeypatch: pytest.MonkeyPatch, act: Any) -> None:
    """Have the writing thread call a function before the tensors of the first checkpoint."""
    write, calls = checkpoint_module.write_tensors, []

    def acting(*args: Any) -> None:
        calls.append(args)
        if len(calls) == 1:
            act()
        write(*args)

    monkeypatch.setattr(checkpoint_module, "write_tensors", acting)


def test_steps_go_on_while_a_checkpoint_is_written(
    tiny, make_config, updates, save_at, resume, assert_same_run, monkeypatch
):
    """It holds the values of its own step, and is whole when an error ends the run."""
    whole = train(make_config("whole"), dataset=tiny)
    released, config = threading.Event(), make_config()

    def stop(done: int) -> None:
        if done == 7:
            assert not list(Path(config.out).glob("checkpoint-*"))
            released.set()
            raise ValueError("stopped")

    with monkeypatch.context() as patch:
        save_at(3)
        before_writing(patch, lambda: released.wait(10))
        with pytest.raises(ValueError, match="stopped"):
            train(config, dataset=tiny, progress=updates(stop))
    assert load_checkpoint(config.out, with_state=True).state.values["step"] == 3
    assert_same_run(whole, resume(config))


def test_ctrl_c_during_a_write_leaves_that_checkpoint_and_the_last(
    tiny, make_config, updates, save_at, resume, assert_same_run, monkeypatch
):
    whole = train(make_config("whole"), dataset=tiny)
    config, sent = make_config(), threading.Event()

    def interrupted() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        sent.set()
        time.sleep(0.05)

    with monkeypatch.context() as patch:
        save_at(2)
        before_writing(patch, interrupted)
        submit = BackgroundWriter.submit

        def submitted(*args: Any) -> None:
            submit(*args)
            assert sent.wait(10)  # or the run ends before the thread begins

        patch.setattr(BackgroundWriter, "submit", submitted)
        with pytest.raises(KeyboardInterrupt):
            train(config, dataset=tiny, progress=updates())
    assert sorted(path.name for path in Path(config.out).iterdir()) == [
        "checkpoint-000001",
        "checkpoint-000002",
        "log.csv",
    ]
    assert_same_run(whole, resume(config))


@pytest.mark.parametrize("steps", [(2, 6), (2,), ()], ids=["the next", "the end", "the last one"])
def test_a_failed_write_ends_the_run(tiny, make_config, save_at, monkeypatch, steps):
    """In the next save, at the end of training, and where it is the last checkpoint that fails."""
    config = make_config()
    save_at(*steps)
    before_writing(monkeypatch, fail)
    with pytest.raises(CheckpointError, match=r"No space left on device\); there is no earlier one"):
        train(config, dataset=tiny)
    assert [path.name for path in Path(config.out).iterdir()] == ["log.csv"]
