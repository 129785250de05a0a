"""Support for tests of the command line."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
QUICK = "--sizes 64 8 4 --pretrain.epochs 1 --supervised.epochs 1 --no-tensorboard --device cpu"


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


def flat(text: str) -> str:
    """Without the frames and line breaks of messages in boxes."""
    return " ".join(re.sub(r"[│╭╮╰╯─]", " ", text).split())


def assert_refused(outcome: Outcome, names: str) -> None:
    """Exit code 2, and one message that holds every word of ``names`` and does not show our insides."""
    code, out, err = outcome
    message = flat(err)
    missing = [word for word in names.split() if word.lower() not in message.lower()]
    assert (code, missing) == (2, []), message
    assert "Traceback" not in out + err and not re.search(r"\w(Error|Exception):", message)
    if err.startswith("fastae:"):
        assert err.count("\n") == 1


def environment(**changes: str) -> dict[str, str]:
    path = os.pathsep.join([str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path.rstrip(os.pathsep), **changes}


def python(code: str, *args: str, **changes: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *args]
    return subprocess.run(command, capture_output=True, text=True, env=environment(**changes), timeout=120)
