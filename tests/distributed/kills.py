"""Kills of processes at random moments: whether runs end with the parameters of one that nothing disturbs.

python -m tests.distributed.kills 25
"""

from __future__ import annotations

import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from tests.distributed.test_elastic import _launch, command_line, largest_difference, nothing
from tests.processes import forks

OPTIONS = ["--hidden", "40", "--epochs", "150", "--checkpoint-seconds", "0.05", "--restarts", "1000000"]


def start(rows: Path, out: Path, shard: str) -> Any:
    line = [*command_line(rows, out, 2), "--shard", shard, *OPTIONS]
    process = forks().Process(target=_launch, args=(line, out.with_name(f"errors-{out.name}"), nothing))
    process.start()
    return process


def ranks(launching: int) -> list[int]:
    """Process ids of a launcher's children."""
    found = Path(f"/proc/{launching}/task/{launching}/children")
    return [int(word) for word in found.read_text().split()] if found.exists() else []


def disturb(process: Any, out: Path, kills: int, random: random.Random) -> int:
    """Kill processes of a run, each after some time in which it may start, train and write."""
    done, began = 0, time.monotonic()
    while process.is_alive() and done < kills:
        time.sleep(random.uniform(0.1, 1.5))
        victims = ranks(process.pid)
        if len(victims) == 2 and any(out.glob("checkpoint-*")):
            os.kill(random.choice(victims), signal.SIGKILL)
            done += 1
    print(f"{done} kills in {time.monotonic() - began:.0f} s", flush=True)
    return done


def main(kills: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows.npy"
        np.save(rows, np.random.default_rng(2).random((120, 12), dtype=np.float32))
        for number, shard in enumerate(("weights", "units")):
            whole, out = Path(folder) / f"{shard}-whole", Path(folder) / f"{shard}-killed"
            start(rows, whole, shard).join()
            process = start(rows, out, shard)
            done = disturb(process, out, kills, random.Random(number))
            process.join()
            difference = largest_difference(out, whole)
            print(
                f"{shard}: {done} kills, exit code {process.exitcode}, difference {difference:g}", flush=True
            )


if __name__ == "__main__":
    main(int(sys.argv[1]))
