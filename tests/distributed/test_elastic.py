"""Processes that are killed, stopped or interrupted: the run goes on, or ends with a message."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from fastae.__main__ import main
from fastae.distributed import World, joined, launcher, world
from fastae.train import engine, evaluation, load_checkpoint
from fastae.train.writing import BackgroundWriter
from tests.cli.support import environment
from tests.processes import Group, forks

pytestmark = pytest.mark.skipif(
    "forkserver" not in multiprocessing.get_all_start_methods(), reason="the system has no signals"
)

STEPS = 4  # of an epoch
LINE = """--hidden 5 --corruption masking:0.2 --precision float64 --no-tensorboard --device cpu
--checkpoint-seconds 0 --epochs 4 --finetune.epochs 0 --batch-size 30"""


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "rows.npy"
    np.save(path, np.random.default_rng(2).random((120, 12), dtype=np.float32))
    return path


def command_line(rows: Path, out: Path, processes: int, *options: str) -> list[str]:
    return ["train", str(rows), "--out", str(out), *LINE.split(), "--processes", str(processes), *options]


# --- a signal in the middle of training -----------------------------------------------------------------


def _write_to(path: Path) -> None:
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)


Act = Callable[[engine._Run, int], None]


def _launch(line: list[str], errors: Path, act: Act) -> None:
    """``fastae`` with a line of arguments; its processes are forks of this one and act before checkpoints."""
    _write_to(errors)
    world._POLL_SECONDS = 0.0  # a checkpoint after every step
    os.register_at_fork(after_in_child=lambda: signal.signal(signal.SIGTERM, signal.SIG_DFL))
    save, launching = engine._Run._save, os.getpid()

    def acting(run: engine._Run) -> None:
        act(run, launching)
        save(run)

    engine._Run._save, launcher._START_METHOD = acting, "fork"
    sys.argv = ["fastae", *line]
    sys.exit(main())


def position(epoch: int, step: int) -> int:
    return epoch * STEPS + step


def nothing(run: engine._Run, launching: int) -> None:
    pass


def die(rank: int, run: engine._Run, launching: int) -> None:
    """Be killed in the second epoch, at the first attempt."""
    state, first = run.session.state, os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
    if first and run.session.world.rank == rank and position(state.epoch, state.step) == 6:
        os.write(2, b"killed\n")
        os.kill(os.getpid(), signal.SIGKILL)


def interrupt(at: int, run: engine._Run, launching: int) -> None:
    """Have SIGTERM sent to the launcher at a step, and wait until it comes from there."""
    state = run.session.state
    if run.session.world.leads and position(state.epoch, state.step) == at:
        os.kill(launching, signal.SIGTERM)
        while not run.session.interruption.number:
            time.sleep(0.01)


def fail_to_evaluate(run: engine._Run, launching: int) -> None:
    """Have the first process fail once training has ended."""

    def fail(*args: object, **options: object) -> None:
        raise OSError(
            28, f"no space at attempt {os.environ['TORCHELASTIC_RESTART_COUNT']}", "evaluation.json"
        )

    evaluation.evaluate = fail


Launch = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def launch(rows: Path) -> Iterator[Launch]:
    """Train a run in the folder ``out``; returns the exit code and what was written."""
    started = []

    def run(out: Path, processes: int, *options: str, act: Act = nothing) -> tuple[int, str]:
        errors = out.with_name(f"errors-{len(started)}")
        line = command_line(rows, out, processes, *options)
        started.append(forks().Process(target=_launch, args=(line, errors, act)))
        started[-1].start()
        started[-1].join(100)
        return started[-1].exitcode, errors.read_text()

    yield run
    for process in started:
        process.kill()


def parameters(run: Path) -> dict[str, torch.Tensor]:
    checkpoint = load_checkpoint(run, with_state=True)
    assert checkpoint.state.values["finished"]
    return checkpoint.stack.state_dict()


def largest_difference(a: Path, b: Path) -> float:
    ours, theirs = parameters(a), parameters(b)
    return max(float((ours[name] - theirs[name]).abs().max()) for name in ours)


@pytest.fixture(scope="module")
def whole(launch: Launch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two processes that nothing disturbs."""
    out = tmp_path_factory.mktemp("whole") / "run"
    assert launch(out, 2)[0] == 0
    return out


@pytest.mark.parametrize("rank, shard", [(0, "data"), (1, "data"), (1, "weights")])
def test_a_killed_process_is_started_again_and_nothing_is_lost(launch, whole, tmp_path, rank, shard):
    """See also ``tests/distributed/kills.py``."""
    code, text = launch(tmp_path / "run", 2, "--shard", shard, act=partial(die, rank))
    assert code == 0 and "killed" in text, text
    assert largest_difference(tmp_path / "run", whole) <= (0.0 if shard == "data" else 1e-12)


def test_too_many_deaths_end_the_run_by_one_message(launch, tmp_path):
    code, text = launch(tmp_path / "run", 2, "--restarts", "0", act=partial(die, 1))
    assert code == 75 and text.count("fastae:") == 1, text
    assert "signal 9" in text and "Traceback" not in text


def test_an_error_after_training_ends_the_run_by_one_message(launch, tmp_path):
    code, text = launch(tmp_path / "run", 2, act=fail_to_evaluate)
    assert code == 2 and text.count("fastae:") == 1, text
    assert text.endswith("fastae: evaluation.json: no space at attempt 0\n")


def test_an_interrupted_run_goes_on_with_fewer_processes(launch, whole, tmp_path):
    run = tmp_path / "run"
    for at, processes, options in ((2, 4, ()), (9, 2, ("--resume",))):
        code, text = launch(run, processes, *options, act=partial(interrupt, at))
        assert code == 128 + signal.SIGTERM, text
        assert text.count("fastae:") == 1 and f"fastae train --resume --out {run}" in text
        state = load_checkpoint(run, with_state=True).state.values
        assert position(state["epoch"], state["step"]) == at + 1
    assert launch(run, 1, "--resume")[0] == 0
    assert largest_difference(run, whole) < 1e-9


# --- others ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_signal_to_the_command_is_one_message(rows, tmp_path):
    """With processes that are started as they are outside of these tests."""
    run = tmp_path / "run"
    line = command_line(rows, run, 2, "--epochs", "1000000")
    process = subprocess.Popen(
        [sys.executable, "-m", "fastae", *line],
        env=environment(),
        text=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    while process.poll() is None and not any(run.glob("checkpoint-*")):
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=100)
    assert process.returncode == 128 + signal.SIGTERM
    assert err == f"fastae: interrupted; it goes on with: fastae train --resume --out {run}\n"


def hang(folder: str, writing: bool) -> None:
    """The second process keeps the first one waiting, by itself or by its thread that writes."""
    _write_to(Path(folder) / f"errors-{os.environ['LOCAL_RANK']}")

    def wait(world: World) -> None:
        world.barrier()
        if world.rank == 1:
            time.sleep(30)
        world.barrier()

    with joined("cpu", 0.5) as world, BackgroundWriter(world) as writer:
        if writing:
            writer.submit({}, lambda copies: wait(writer.world))
        else:
            wait(world)


@pytest.mark.parametrize("writing", [False, True])
def test_a_process_that_hangs_is_named(tmp_path, writing):
    group = Group(2)
    first, second = group.processes
    with pytest.raises(EOFError):  # of the process that has ended
        group.run(hang, str(tmp_path), writing)
    first.join(10)
    message = (tmp_path / "errors-0").read_text()
    assert first.exitcode == 1 and (tmp_path / "errors-1").read_text() == ""
    assert message.count("\n") == 1 and message.startswith("fastae: no answer for 0.5 s from process 1 on ")
    assert f", {second.pid};" in message
    second.kill()
