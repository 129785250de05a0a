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


def fastae_process(line: str, cwd: Path, **pipes: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "fastae", *shlex.split(line)]
    return subprocess.Popen(command, cwd=cwd, env=environment(), text=True, stderr=subprocess.PIPE, **pipes)


def test_python_m_fastae_returns_the_exit_code(here):
    bad = fastae_process("train --data digist", here, stdout=subprocess.PIPE)
    out, err = bad.communicate(timeout=120)
    assert_refused(Outcome(bad.returncode, out, err), "digist 'digits'")
    assert not list(here.iterdir())


@pytest.mark.parametrize("line", ["info", "info --json", "train --help"])
def test_a_reader_that_went_away_is_no_traceback(here, line):
    """As in ``fastae info | head -1``."""
    reader, writer = os.pipe()
    process = fastae_process(line, here, stdout=writer)
    os.close(writer)
    os.close(reader)
    _, err = process.communicate(timeout=120)
    assert err == "" and process.returncode in (0, 1)


def test_ctrl_c_ends_with_exit_code_130_and_the_run_resumes(fastae_, here):
    line = f"train {QUICK} --out run --finetune.epochs 0 --pretrain.epochs"
    process = fastae_process(f"{line} 3000", here, stdout=subprocess.PIPE)
    limit = time.monotonic() + 60
    while not (here / "run" / "log.csv").exists() and process.poll() is None and time.monotonic() < limit:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.count("\n") == 1 and err.startswith("fastae: interrupted") and "--resume" in err
    assert "Traceback" not in err
    stood = load_checkpoint("run", with_state=True).state.values
    assert not stood["finished"]
    (config,) = Path("run").glob("checkpoint-*/config.json")
    kept = json.loads(config.read_text())
    kept["train"]["pretrain"]["epochs"] = len(stood["history"]) + 2  # or it would train for minutes
    config.write_text(json.dumps(kept))
    code, out, _ = fastae_("train --resume --out run")
    assert code == 0 and "Run: run" in out
    epochs = [row["epoch"] for row in load_checkpoint("run", with_state=True).state.values["history"]]
    assert epochs == [*range(1, len(stood["history"]) + 3)] * 2
