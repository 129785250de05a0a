"""The command line in processes of its own: pipes, signals, exit codes."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from fastae.train import load_checkpoint
from tests.cli.support import QUICK, Outcome, assert_refused, environment

LONG = "--finetune.epochs 0 --pretrain.epochs 3000"


def heed_signals() -> None:
    """Undo what the tests' own process may have inherited, such as nohup's ignored SIGHUP."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        signal.signal(getattr(signal, name), signal.SIG_DFL)


def fastae_process(line: str, cwd: Path, **pipes: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "fastae", *shlex.split(line)]
    return subprocess.Popen(
        command,
        cwd=cwd,
        env=environment(),
        text=True,
        stderr=subprocess.PIPE,
        preexec_fn=heed_signals if os.name == "posix" else None,
        **pipes,
    )


def test_python_m_fastae_returns_the_exit_code(here):
    bad = fastae_process("train --data digist", here, stdout=subprocess.PIPE)
    out, err = bad.communicate(timeout=120)
    assert_refused(Outcome(bad.returncode, out, err), "digist 'digits'")
    assert not list(here.iterdir())


@pytest.mark.parametrize("line", ["info", "info --json", "train --help", f"train {QUICK} --out run"])
def test_a_reader_that_went_away_is_no_traceback(here, line):
    """As in ``fastae info | head -1``."""
    reader, writer = os.pipe()
    process = fastae_process(line, here, stdout=writer)
    os.close(writer)
    os.close(reader)
    _, err = process.communicate(timeout=120)
    assert err == "" and process.returncode in (0, 1)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="the system has no full device")
def test_output_that_cannot_be_written_is_one_message(here):
    with open("/dev/full", "w") as full:
        process = fastae_process("info", here, stdout=full)
        _, err = process.communicate(timeout=120)
    assert err.splitlines()[0] == "fastae: output: No space left on device" and "Traceback" not in err
    assert process.returncode


def await_log(process: subprocess.Popen[str], run: Path) -> None:
    """Wait for the first epoch's row."""
    log, limit = run / "log.csv", time.monotonic() + 60
    while process.poll() is None and time.monotonic() < limit:
        if log.exists() and log.read_text().count("\n") > 1:
            return
        time.sleep(0.05)


@pytest.mark.skipif(os.name != "posix", reason="Windows has no such signals")
@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_signal_ends_training_with_its_exit_code_and_the_run_resumes(fastae_, here, name, code):
    run = here / "a run"  # the command that continues it is quoted
    process = fastae_process(
        f"train {QUICK} --out {run.name!r} {LONG}",
        here,
        stdout=subprocess.PIPE,
    )
    await_log(process, run)
    process.send_signal(getattr(signal, name))
    out, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert err == "fastae: interrupted; it goes on with: fastae train --resume --out 'a run'\n"
    assert out.splitlines()[1].startswith("layer 1      epoch    1/3000  loss ")
    stood = load_checkpoint(run, with_state=True).state.values
    assert not stood["finished"]
    (config,) = run.glob("checkpoint-*/config.json")
    kept = json.loads(config.read_text())
    kept["train"]["pretrain"]["epochs"] = len(stood["history"]) + 2  # or it would train for minutes
    config.write_text(json.dumps(kept))
    assert fastae_("train --resume --out 'a run'").code == 0
    epochs = [row["epoch"] for row in load_checkpoint(run, with_state=True).state.values["history"]]
    assert epochs == [*range(1, len(stood["history"]) + 3)] * 2


@pytest.mark.skipif(os.name != "posix", reason="Windows has no such signals")
@pytest.mark.parametrize("seconds", [0.3, 0.6, 0.9, 1.3])
def test_a_signal_while_everything_is_imported_is_one_message(here, seconds):
    process = fastae_process(f"train {QUICK} --out run {LONG}", here, stdout=subprocess.PIPE)
    time.sleep(seconds)
    process.send_signal(signal.SIGTERM if seconds > 1 else signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == (143 if seconds > 1 else 130)
    assert err.startswith("fastae: interrupted") and err.count("\n") == 1


@pytest.mark.skipif(os.name != "posix", reason="Windows has no such signals")
def test_a_signal_while_the_process_ends_is_ignored(here):
    script = """import atexit, os, signal, fastae.cli
from fastae.__main__ import main
fastae.cli.main = lambda: atexit.register(os.kill, os.getpid(), signal.SIGINT) and 7
raise SystemExit(main())"""
    command = [sys.executable, "-c", script]
    ended = subprocess.run(
        command, cwd=here, env=environment(), text=True, stderr=subprocess.PIPE, preexec_fn=heed_signals
    )
    assert (ended.returncode, ended.stderr) == (7, "")


@pytest.mark.skipif(os.name != "posix", reason="Windows has no SIGHUP")
def test_a_hang_up_that_nohup_has_the_process_ignore_is_ignored(here):
    line = f"train {QUICK} --out run --pretrain.epochs 20"
    ignore = (
        "from signal import *; import os, sys; signal(SIGHUP, SIG_IGN); os.execv(sys.argv[1], sys.argv[1:])"
    )
    command = [sys.executable, "-c", ignore, sys.executable, "-m", "fastae", *shlex.split(line)]
    process = subprocess.Popen(command, cwd=here, env=environment(), text=True, stdout=subprocess.DEVNULL)
    await_log(process, here / "run")
    process.send_signal(signal.SIGHUP)
    assert process.wait(60) == 0


def test_lines_of_progress_reach_a_pipe_at_once(here):
    process = fastae_process(f"train {QUICK} --out run {LONG}", here, stdout=subprocess.PIPE)
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(2)]  # the first says what was read
    assert process.poll() is None and lines[1].startswith("layer 1      epoch    1/3000")
    process.kill()
    process.communicate()
