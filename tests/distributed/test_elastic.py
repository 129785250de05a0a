"""Processes that are killed, stopped or interrupted: the run goes on, or ends with a message."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from fastae.distributed import joined
from fastae.train import load_checkpoint
from tests.cli.support import environment
from tests.distributed.group import Group

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self").exists(), reason="finds processes in /proc"),
]

EPOCHS = 80  # of 7 steps
LINE = """--hidden 5 --corruption masking:0.2 --precision float64 --no-tensorboard --device cpu
--checkpoint-seconds 0.2"""


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "rows.npy"
    np.save(path, np.random.default_rng(2).random((120, 12), dtype=np.float32))
    return path


def start(rows: Path, out: Path, processes: int, epochs: int, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "fastae", "train", str(rows), "--out", str(out), *LINE.split()]
    command += ["--processes", str(processes), "--epochs", str(epochs), *options]
    return subprocess.Popen(
        command, env=environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def children(process: subprocess.Popen[str]) -> dict[int, int]:
    """Process ids of a launcher's processes by rank: it starts them one after the other."""
    found: list[int] = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = re.search(r"^PPid:\t(\d+)$", (folder / "status").read_text(), re.MULTILINE)
            if parent and int(parent[1]) == process.pid and "spawn_main" in (folder / "cmdline").read_text():
                found.append(int(folder.name))
        except OSError:
            continue
    return dict(enumerate(sorted(found)))


def await_checkpoint(process: subprocess.Popen[str], out: Path, after: int = 0) -> None:
    """Wait for a checkpoint with more than ``after`` epochs."""
    limit = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < limit:
        log = out / "log.csv"
        if any(out.glob("checkpoint-*")) and log.exists() and len(log.read_text().splitlines()) > after + 1:
            return
        time.sleep(0.02)
    out_text, err = process.communicate(timeout=60)
    raise AssertionError(f"no checkpoint: {out_text}{err}")


def finish(process: subprocess.Popen[str], code: int = 0) -> tuple[str, str]:
    out, err = process.communicate(timeout=200)
    assert process.returncode == code, out + err
    return out, err


def parameters(run: Path) -> dict[str, torch.Tensor]:
    checkpoint = load_checkpoint(run, with_state=True)
    assert checkpoint.state.values["finished"]
    return checkpoint.stack.state_dict()


def largest_difference(a: Path, b: Path) -> float:
    ours, theirs = parameters(a), parameters(b)
    return max(float((ours[name] - theirs[name]).abs().max()) for name in ours)


@pytest.fixture(scope="module")
def whole(rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two processes that nothing disturbs."""
    out = tmp_path_factory.mktemp("whole") / "run"
    finish(start(rows, out, 2, EPOCHS))
    return out


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_is_started_again_and_nothing_is_lost(rows, whole, tmp_path, rank):
    process = start(rows, tmp_path / "run", 2, EPOCHS)
    await_checkpoint(process, tmp_path / "run", after=1)
    os.kill(children(process)[rank], signal.SIGKILL)
    finish(process)
    assert largest_difference(tmp_path / "run", whole) == 0.0


def test_too_many_deaths_end_the_run_by_one_message(rows, tmp_path):
    process = start(rows, tmp_path / "run", 2, 100_000, "--restarts", "0")
    await_checkpoint(process, tmp_path / "run")
    os.kill(children(process)[1], signal.SIGKILL)
    _, err = finish(process, 75)
    assert err.count("fastae:") == 1 and "signal 9" in err and "Traceback" not in err


def hang(folder: str) -> None:
    """The second process keeps the first one waiting."""
    errors = os.open(f"{folder}/errors-{os.environ['LOCAL_RANK']}", os.O_WRONLY | os.O_CREAT)
    os.dup2(errors, 2)
    with joined("cpu", 1.0) as world:
        world.barrier()
        if world.rank == 1:
            time.sleep(30)
        world.barrier()


def test_a_process_that_hangs_is_named(tmp_path):
    group = Group(2)
    first, second = group.processes
    with pytest.raises(EOFError):  # of the process that has ended
        group.run(hang, str(tmp_path))
    first.join(10)
    message = (tmp_path / "errors-0").read_text()
    assert first.exitcode == 1 and (tmp_path / "errors-1").read_text() == ""
    assert message.count("\n") == 1 and message.startswith("fastae: no answer for 1 s from process 1 on ")
    assert f", {second.pid};" in message
    second.kill()


def test_an_interrupted_run_says_how_it_goes_on_with_fewer_processes(rows, whole, tmp_path):
    number = signal.SIGTERM
    run = tmp_path / "run"
    process = start(rows, run, 4, EPOCHS)
    await_checkpoint(process, run, after=1)
    process.send_signal(number)
    _, err = finish(process, 128 + number)
    assert err.count("fastae:") == 1 and f"fastae train --resume --out {run}" in err
    epochs = load_checkpoint(run, with_state=True).state.values["epoch"]
    process = start(rows, run, 2, EPOCHS, "--resume")
    await_checkpoint(process, run, after=epochs + 1)
    process.send_signal(number)
    finish(process, 128 + number)
    finish(start(rows, run, 1, EPOCHS, "--resume"))
    assert largest_difference(run, whole) < 1e-9
