"""Verify fastae on a GPU, then measure it: ``python benchmarks/gpu_check.py``, within ten minutes.

First every test of the kernels and of captured steps, then NVIDIA's memory checker where it is installed,
then the benchmark suite, ``fastae bench``, which writes a file, a page and pictures. Each part is written as
soon as it is done. A second call skips the parts that succeeded, and does those that failed or did not fit
into the time.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from fastae_kernels.plan import config
from fastae_kernels.plan.schedules import GemmConfig

import fastae
from fastae.bench.problems import Problem, Shape
from fastae.bench.results import describe
from fastae.commands import bench
from fastae.console import Console

ROOT = Path(__file__).resolve().parent.parent
TRAINING_TESTS = ["tests/train/test_graph.py", "tests/train/test_step.py"]


def run_for(seconds: float, command: list[str], **options: Any) -> int | None:
    """A command's exit code; ``None`` where it took too long: all of it is ended then."""
    with subprocess.Popen(command, cwd=ROOT, start_new_session=True, **options) as process:
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGINT)  # pytest writes down what it has
            with suppress(subprocess.TimeoutExpired):
                process.wait(15.0)
            return None
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def environment(**changes: str) -> dict[str, str]:
    paths = [str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), **changes}


def part_tests(seconds: float) -> dict[str, Any]:
    """Counts of the tests of the kernels and of captured steps; names of those that fail."""
    files = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("tests/kernels/test_*.py"))
    files = [name for name in files if not name.endswith("test_aot.py")] + TRAINING_TESTS
    workers = max(1, (os.cpu_count() or 1) * 3 // 4)  # most of the time is compiling kernels
    # without xdist a process a file
    spread = importlib.util.find_spec("xdist") is not None
    groups = [files] if spread else [[name] for name in files]
    began = time.monotonic()

    def run(number: int, report: Path) -> int | None:
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}",
                   *(["-n", str(workers)] if spread else []), *groups[number]]  # fmt: skip
        left = max(1.0, seconds - (time.monotonic() - began))
        return run_for(left, command, env=environment())

    counts: Counter[str] = Counter()
    problems: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(1 if spread else workers) as pool:
        reports = [Path(folder) / f"{number}.xml" for number in range(len(groups))]
        codes = list(pool.map(run, range(len(groups)), reports))
        for group, report, code in zip(groups, reports, codes, strict=True):
            if code is None:
                problems[" ".join(group)] = "not finished in time"
            elif not report.exists():
                problems[" ".join(group)] = f"no report, exit code {code}"
            if not report.exists():
                continue
            suite = ElementTree.parse(report).getroot().find("testsuite")
            assert suite is not None
            counts.update({k: int(suite.get(k, 0)) for k in ("tests", "failures", "errors", "skipped")})
            for case in suite.iter("testcase"):
                if case.find("failure") is not None or case.find("error") is not None:
                    problems[f"{case.get('classname')}::{case.get('name')}"] = "failed"
    return {**counts, "problems": problems, "duration": time.monotonic() - began}


def part_sanitizer(seconds: float) -> dict[str, Any]:
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        return {"skipped": "compute-sanitizer is not installed"}
    command = [tool, "--tool", "memcheck", "--error-exitcode", "9", sys.executable, __file__,
               "--every-operator"]  # fmt: skip
    with tempfile.TemporaryFile("w+") as said:
        changes = environment(PYTORCH_NO_CUDA_MEMORY_CACHING="1")
        code = run_for(seconds, command, env=changes, stdout=said, stderr=subprocess.STDOUT)
        said.seek(0)
        output = said.read()[-2000:]
    problems = {} if code == 0 else {"memcheck": output if code else f"not finished in {seconds:.0f} s"}
    return {"returncode": code, "output": output, "problems": problems}


def every_operator(device: str) -> None:
    """Every operator forward and backward, in both strategies, on odd shapes and on aligned ones."""
    corruptions = ("masking:0.3", "salt_and_pepper:0.2", "swap:0.2", "gaussian:0.1")
    for shape in ((67, 131, 93), (96, 192, 128)):
        for strategy in ("fused", "split"):
            for dtype in (torch.bfloat16,):  # compiling takes the time here
                problem = Problem.make(Shape(*shape), dtype, device)
                decoder = problem.weight.detach().t().contiguous().requires_grad_()
                with config.using(strategy=strategy, gemm=GemmConfig(64, 64, 32, 4, 3, subtiles=2)):
                    for number, corruption in enumerate(corruptions):
                        x = problem.x.clone().requires_grad_()
                        loss = fastae.functional.autoencoder_loss(
                            x, problem.weight, problem.bias, decoder if number % 2 else None,
                            problem.decoder_bias, activation=("sigmoid", "gelu")[number // 2],
                            contractive=0.1,
                            l1=0.1, higher_order=0.1, dropout=0.2, code_noise="gaussian",
                            loss=("bce", "mse")[number % 2],
                            corruption=fastae.corruption.parse_corruption(corruption),
                        )  # fmt: skip
                        loss.total.backward()
                    layers = [(problem.weight, problem.bias, "sigmoid")]
                    code, penalty = fastae.functional.deep_contractive_encode(problem.x, layers)
                    (code.sum() + penalty).backward()
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def succeeded(part: dict[str, Any] | None) -> bool:
    return part is not None and "failed" not in part and not part.get("problems")


def check(path: Path, device: torch.device, left: Callable[[], float]) -> list[str]:
    """Run what did not succeed before; returns the parts with problems."""
    head = describe(device)
    results: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    if results.get("head") != head:
        results = {"head": head, "parts": {}}
    parts = {
        "tests": lambda: part_tests(min(300.0, left())),
        "sanitizer": lambda: part_sanitizer(min(120.0, left())),
    }
    for key, part in parts.items():
        if succeeded(results["parts"].get(key)):
            continue
        try:
            results["parts"][key] = part()
        except Exception as error:  # one part's failure is a result; the other still counts
            results["parts"][key] = {"failed": f"{type(error).__name__}: {error}"[:500]}
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(results, indent=1) + "\n")
        temporary.replace(path)
        print(key, json.dumps(results["parts"][key]), flush=True)
    return [key for key, part in results["parts"].items() if not succeeded(part)]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Verify fastae on a GPU, then measure it.")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    parser.add_argument("--seconds", type=float, default=570.0, help="no part starts after this time")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results", help="a folder")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes: does the script run at all")
    parser.add_argument("--every-operator", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.every_operator:
        every_operator(given.device)
        return 0
    if given.device == "cpu" and not given.tiny:
        parser.error("no GPU was found; --tiny only checks that the script runs")

    began = time.monotonic()

    def left() -> float:
        return max(1.0, given.seconds - (time.monotonic() - began))

    device = torch.device(given.device)
    name = describe(device)["device"].lower().replace(" ", "-") + ("-tiny" if given.tiny else "")
    bad = check(given.out / f"{name}-check.json", device, left) if device.type == "cuda" else []
    shapes = (Shape(16, 24, 32),) if given.tiny else ()
    measurement = bench.Config(
        device=given.device, dtype=(given.dtype,), seconds=left(), shapes=shapes,
        out=str(given.out / f"{name}.json"), compile=not given.tiny,
    )  # fmt: skip
    try:
        bench.run(measurement, Console())
    except bench.MeasurementError as error:
        bad.append(f"measurements: {error}")
    print(f"results in {given.out}; parts with problems: {', '.join(bad) or 'none'}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
