"""Verify fastae on a GPU, then measure it: three stages, each within the minutes of one short command.

    python benchmarks/gpu_check.py 1 --out FOLDER    # 300 s: is it right, which tiles win, the step
    python benchmarks/gpu_check.py 2 --out FOLDER    # 180 s: the tests
    python benchmarks/gpu_check.py 3 --out FOLDER    # 230 s: compilers, whole runs, the suite, counters

Each part of a stage runs in a process of its own until its limit, and FOLDER/stage-N.json is written after
each. The same command again does what did not succeed. ``--dry`` needs no GPU: the same calls under a driver
that runs nothing (:mod:`fastae_kernels.tools.stub`), into files named ``dry``, without a time or an error.
It shows that a stage runs through, and fills ``TRITON_CACHE_DIR`` for the machine with the GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]

from benchmarks import gpu_machine, gpu_parts, gpu_products  # noqa: E402
from fastae.bench.results import describe  # noqa: E402
from fastae.files import write_whole  # noqa: E402

NOTHING = "none: a driver that runs nothing; no time and no error was measured"


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(content, indent=1) + "\n")


def run_part(stage: int, name: str, given: argparse.Namespace) -> None:
    """In a process of its own: the answer goes to ``given.file``, in pieces as they come."""
    part = gpu_parts.STAGES[stage][1][name]
    here = gpu_machine.Machine(given.dry, time.monotonic() + given.seconds, given.data)
    with gpu_parts.under(given.dry, part):
        answer = part.run(here, lambda so_far: write(given.file, {"done": False, "result": so_far}))
    write(given.file, {"done": True, "result": answer})


def check(stage: int, given: argparse.Namespace) -> dict[str, Any]:
    """Run the parts of a stage that did not succeed before."""
    began = time.monotonic()
    total, parts = gpu_parts.STAGES[stage]
    total *= given.stretch
    path = given.out / f"{'dry-' if given.dry else ''}stage-{stage}.json"
    head = {"dry": given.dry, "device": NOTHING} if given.dry else {"dry": False}
    head |= {"machine": describe(torch.device("cpu" if given.dry else "cuda"))}
    results = json.loads(path.read_text()) if path.exists() else {}
    if results.get("head") != head:
        results = {"head": head, "parts": {}}
    for name, part in parts.items():
        held = results["parts"].get(name)
        if name not in (given.only or parts) or (held is not None and succeeded(held)):
            continue
        left = total - (time.monotonic() - began)
        if left < 5.0:
            results["parts"][name] = {"done": False, "why": "no time was left", "result": None}
            continue
        seconds = min(given.stretch * part.seconds, left)
        results["parts"][name] = answer = in_a_process(stage, name, seconds, given)
        write(path, results)
        problems = (answer["result"] or {}).get("problems") or "no problems"
        took = f"{answer['wall']:.0f} s ({answer['cpu']:.0f} of the CPU)"
        print(f"{name}: {answer['why']}, {took}; {problems}", flush=True)
    results["wall"] = round(time.monotonic() - began, 1)
    write(path, results)
    return results


def in_a_process(stage: int, name: str, seconds: float, given: argparse.Namespace) -> dict[str, Any]:
    began, before = time.monotonic(), os.times()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "answer.json"
        command = [sys.executable, __file__, str(stage), "--part", name, "--file", str(file)]
        command += ["--seconds", str(seconds - 3.0), *(["--dry"] if given.dry else [])]
        command += ["--data", str(given.data)] if given.data else []
        env = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
        with open(Path(folder) / "log", "w+") as log, subprocess.Popen(
            command, cwd=ROOT, env=env, start_new_session=True, stdout=log, stderr=subprocess.STDOUT
        ) as process:  # fmt: skip
            try:
                code = process.wait(seconds + 5.0)
                why = "done" if code == 0 else f"exit code {code}"
            except subprocess.TimeoutExpired:
                gpu_machine.end(process)
                why = f"not finished in {seconds:.0f} s"
            log.seek(0)
            output = log.read()
        answer = json.loads(file.read_text()) if file.exists() else {"done": False, "result": None}
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    answer |= {"why": why, "wall": round(time.monotonic() - began, 1), "cpu": round(cpu, 1)}
    return answer if answer["done"] else answer | {"output": output[-3000:]}


def succeeded(part: dict[str, Any]) -> bool:
    result = part["result"] or {}
    return part["done"] and not result.get("problems") and not result.get("left_out")


def summary(results: dict[str, Any]) -> str:
    """The figures that decide most, at the end of the output."""
    lines = []
    result = {name: part["result"] or {} for name, part in results["parts"].items()}
    for where, times in result.get("table", {}).get("times", {}).items():
        cells = (f"{name} {1e6 * t['median']:.0f}" if t else f"{name} -" for name, t in times.items())
        lines.append(f"{where} [us]: " + ", ".join(cells))
    for name in ("steps", "compilers"):
        for shape, ratios in result.get(name, {}).get("over_floor", {}).items():
            lines.append(f"step over floor {shape}: " + ", ".join(f"{n} {r}" for n, r in ratios.items()))
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Verify fastae on a GPU, then measure it.")
    parser.add_argument("stage", type=int, nargs="?", choices=gpu_parts.STAGES, default=1)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "gpu", help="a folder")
    parser.add_argument("--stretch", type=float, default=1.0, help="multiplies every limit of time")
    parser.add_argument("--only", nargs="+", metavar="PART", help="leave out the stage's other parts")
    parser.add_argument("--data", type=Path, help="a folder of MNIST's files, for the last part")
    parser.add_argument("--dry", action="store_true", help="launch on a driver that runs nothing")
    for name in ("--part", "--launch"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if not given.dry and not torch.cuda.is_available():
        parser.error("no GPU was found; --dry shows whether a stage runs through")
    if given.launch:
        gpu_products.launch_once(given.launch, given.dry)
        return 0
    if given.part:
        run_part(given.stage, given.part, given)
        return 0
    results = check(given.stage, given)
    print(summary(results))
    bad = [name for name, part in results["parts"].items() if not succeeded(part)]
    print(f"{'DRY RUN, nothing was measured; ' if given.dry else ''}{results['wall']} s; "
          f"parts with problems: {', '.join(bad) or 'none'}; results in {given.out}")  # fmt: skip
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
