"""Verify fastae on a GPU, then measure it: ``python benchmarks/gpu_check.py``, within ten minutes.

First every test of the kernels, then NVIDIA's memory checker where it is installed, then the times of a whole
training step and of the contractive encoder beside the bare library products, PyTorch eager and
torch.compile. Each part is written to a JSON file as soon as it is done; run again, what succeeded is
skipped, and what failed or did not fit into the time is done.

Times are medians of graph replays, with the second-level cache flushed before each and providers interleaved.
No ratio is written for a provider whose result is wrong in the same run.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from fastae_kernels import config
from providers import Problem, clean_closed_form, clean_fused, closed_form, fused, products_of, step_of
from torch import Tensor

import fastae

ROOT = Path(__file__).resolve().parent.parent
ROWS, FEATURES, UNITS = (256, 1024, 8192), (784, 2048, 8192), (1000, 4096, 16384)
STEPS = ((256, 784, 1000), (1024, 2048, 4096), (8192, 4096, 16384))
AUTOTUNED = ((256, 784, 1000), (1024, 2048, 4096), (8192, 8192, 16384))
"""Shapes that torch.compile's max-autotune is measured at: it takes long to compile."""

Provider = Callable[[], object]


# --- timing -----------------------------------------------------------------------------------------------


class Clock:
    """Times of providers on one device, in seconds."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.on_gpu = device.type == "cuda"
        self.flush = torch.empty(256 << 20 if self.on_gpu else 1, dtype=torch.uint8, device=device)

    def prepare(self, provider: Provider) -> Provider:
        """Warmed up, and captured as a graph on a GPU, so that launching is not what is timed."""
        if not self.on_gpu:
            provider()
            return provider
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                provider()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            provider()
        return graph.replay

    def once(self, provider: Provider) -> float:
        if not self.on_gpu:
            start = time.perf_counter()
            provider()
            return time.perf_counter() - start
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        self.flush.zero_()
        start.record()
        provider()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) * 1e-3

    def wall(self, provider: Provider, rounds: int = 20) -> float:
        """Seconds a call takes that is launched from Python, many in a row: what no graph hides."""
        provider()
        self.synchronize()
        start = time.perf_counter()
        for _ in range(rounds):
            provider()
        self.synchronize()
        return (time.perf_counter() - start) / rounds

    def synchronize(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize()

    def interleaved(self, providers: dict[str, Provider], rounds: int = 30) -> dict[str, dict[str, float]]:
        """Median and quartiles of each provider, a round of all of them after another."""
        times: dict[str, list[float]] = {name: [] for name in providers}
        for _ in range(rounds):
            for name, provider in providers.items():
                times[name].append(self.once(provider))
        summary = {}
        for name, values in times.items():
            low, middle, high = statistics.quantiles(values, n=4)
            summary[name] = {"median": middle, "low": low, "high": high}
        return summary


def measured(
    clock: Clock, floor: Provider, providers: dict[str, Provider], checks: dict[str, Callable[[], float]]
) -> dict[str, Any]:
    """Times and ratios to the floor; a provider that fails or errs says why instead.

    ``checks`` give each provider's error on the tensors that are timed.
    """
    ready: dict[str, Provider] = {"product": clock.prepare(floor)}
    problems: dict[str, str] = {}
    errors: dict[str, float] = {}
    for name, provider in providers.items():
        try:
            errors[name] = checks[name]()
            if not errors[name] < 0.02:
                raise ArithmeticError(f"its result is off by {errors[name]:.1e}")
            ready[name] = clock.prepare(provider)
        except Exception as error:  # whatever a provider raises is its own result
            problems[name] = f"{type(error).__name__}: {error}"[:300]
    times = clock.interleaved(ready)
    ratios = {name: t["median"] / times["product"]["median"] for name, t in times.items()}
    called = {name: clock.wall(providers[name]) for name in ready if name in providers}
    return {"seconds": times, "ratio": ratios, "called": called, "error": errors, "problems": problems}


def relative(actual: Tensor, exact: Tensor) -> float:
    return float((actual.float() - exact).norm() / exact.norm())


def compiled(function: Callable[..., Any], autotuned: bool) -> dict[str, Callable[..., Any]]:
    """torch.compile's versions of a function, for one shape alone."""
    torch._dynamo.reset()
    modes = {"compile": None, "max-autotune": "max-autotune-no-cudagraphs"}
    names = list(modes) if autotuned else ["compile"]
    return {name: torch.compile(function, mode=modes[name], dynamic=False) for name in names}


# --- parts ------------------------------------------------------------------------------------------------


def part_tests(seconds: float) -> dict[str, Any]:
    """Counts of the kernels' tests; names of those that fail."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}",
                   "tests/kernels", "--ignore=tests/kernels/test_aot.py"]  # fmt: skip
        if importlib.util.find_spec("xdist") is not None:  # most of the time is compiling kernels
            command += ["-n", str(max(1, (os.cpu_count() or 1) * 3 // 4))]
        paths = [str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
        subprocess.run(command, cwd=ROOT, env=environment, timeout=seconds, check=False)
        suite = ElementTree.parse(report).getroot().find("testsuite")
    assert suite is not None
    bad = [
        f"{case.get('classname')}::{case.get('name')}"
        for case in suite.iter("testcase")
        if case.find("failure") is not None or case.find("error") is not None
    ]
    counts = {key: int(suite.get(key, 0)) for key in ("tests", "failures", "errors", "skipped")}
    problems = dict.fromkeys(bad[:100], "failed")
    return {**counts, "problems": problems, "duration": float(suite.get("time", 0))}


def part_sanitizer(seconds: float) -> dict[str, Any]:
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        return {"skipped": "compute-sanitizer is not installed"}
    command = [
        tool,
        "--tool",
        "memcheck",
        "--error-exitcode",
        "9",
        sys.executable,
        __file__,
        "--every-operator",
    ]
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    result = subprocess.run(
        command, capture_output=True, text=True, timeout=seconds, check=False, env=environment
    )
    output = (result.stdout + result.stderr)[-2000:]
    problems = {"memcheck": output} if result.returncode else {}
    return {"returncode": result.returncode, "output": output, "problems": problems}


def every_operator(device: str) -> None:
    """Every operator forward and backward, in both strategies, on odd shapes and on aligned ones."""
    corruptions = ("masking:0.3", "salt_and_pepper:0.2", "swap:0.2", "gaussian:0.1")
    for shape in ((67, 131, 93), (96, 192, 128)):
        for strategy in ("fused", "split"):
            for dtype in (torch.float32, torch.float16, torch.bfloat16):
                problem = Problem.make(*shape, dtype, device)
                decoder = problem.weight.detach().t().contiguous().requires_grad_()
                with config.using(strategy=strategy):
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


def part_peaks(clock: Clock, size: int = 8192) -> dict[str, float]:
    """The ceilings of this machine: a large copy and a large bf16 product by the library."""
    source = torch.empty(size * size * 16, dtype=torch.uint8, device=clock.device)
    target = torch.empty_like(source)
    a, b = torch.randn(2, size, size, dtype=torch.bfloat16, device=clock.device)
    providers: dict[str, Provider] = {"copy": lambda: target.copy_(source), "product": lambda: torch.mm(a, b)}
    times = clock.interleaved({name: clock.prepare(p) for name, p in providers.items()}, 10)
    return {
        "copy_bytes_per_second": 2 * source.numel() / times["copy"]["median"],
        "bfloat16_flop_per_second": 2 * size**3 / times["product"]["median"],
    }


def closed_form_encode(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """The code and its penalty as one writes them in PyTorch."""
    h = torch.sigmoid(F.linear(x, weight, bias))
    slope = h * (1.0 - h)
    return h, (slope.float().square() @ weight.float().square().sum(1)).mean()


def part_encode(clock: Clock, m: int, d: int, h: int, dtype: torch.dtype, autotuned: bool) -> dict[str, Any]:
    """Contractive encoding, forward."""
    problem = Problem.make(m, d, h, dtype, str(clock.device))
    x, weight, bias = problem.x, problem.weight.detach(), problem.bias.detach()

    def by(strategy: str | None) -> Callable[[], tuple[Tensor, Tensor]]:
        def run() -> tuple[Tensor, Tensor]:
            with config.using(strategy=strategy):  # pyright: ignore[reportArgumentType]
                return fastae.functional.contractive_encode(x, weight, bias)

        return run

    results: dict[str, Callable[[], tuple[Tensor, Tensor]]] = {
        "default": by(None), "fused": by("fused"), "split": by("split"),
        "eager": lambda: closed_form_encode(x, weight, bias),
    }  # fmt: skip
    for name, function in compiled(closed_form_encode, autotuned).items():
        results[name] = lambda function=function: function(x, weight, bias)
    with torch.no_grad():
        code, penalty = closed_form_encode(x.float(), weight.float(), bias.float())

        def error_of(run: Callable[[], tuple[Tensor, Tensor]]) -> Callable[[], float]:
            def error() -> float:
                ours = run()
                return max(relative(ours[0], code), relative(ours[1], penalty))

            return error

        checks = {name: error_of(run) for name, run in results.items()}
        return measured(clock, lambda: torch.mm(x, weight.t()), dict(results), checks)


def part_step(clock: Clock, m: int, d: int, h: int, dtype: torch.dtype, autotuned: bool) -> dict[str, Any]:
    """A training step: masking, tied weights, cross-entropy, contractive; forward and backward."""
    problem = Problem.make(m, d, h, dtype, str(clock.device))
    objectives = {"fastae": fused, "eager": closed_form, **compiled(closed_form, autotuned)}
    wide = [problem.x.float(), *(p.detach().float().requires_grad_() for p in problem.parameters)]
    exact = torch.autograd.grad(clean_closed_form(*wide), wide[1:])
    del wide

    def error_of(objective: Callable[..., Tensor]) -> Callable[[], float]:
        """Without noise, which differs between providers."""
        clean = clean_fused if objective is fused else clean_closed_form

        def error() -> float:
            ours = torch.autograd.grad(clean(problem.x, *problem.parameters), problem.parameters)
            return max(relative(a, b) for a, b in zip(ours, exact, strict=True))

        return error

    providers = {name: step_of(objective, problem) for name, objective in objectives.items()}
    checks = {name: error_of(objective) for name, objective in objectives.items()}
    result = measured(clock, products_of(problem), dict(providers), checks)
    if clock.on_gpu:
        for name in result["error"]:
            for parameter in problem.parameters:
                parameter.grad = None
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            if name in result["ratio"]:
                providers[name]()
                result.setdefault("peak_bytes", {})[name] = torch.cuda.max_memory_allocated() - before
    return result


# --- the run ----------------------------------------------------------------------------------------------


def versions(device: torch.device) -> dict[str, Any]:
    import triton

    command = ["git", "describe", "--always", "--dirty", "--abbrev=40"]
    commit = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu"
    return {
        "device": name,
        "torch": torch.__version__,
        "triton": triton.__version__,
        "python": platform.python_version(),
        "fastae": fastae.__version__,
        "commit": commit.stdout.strip() or None,
    }


def parts_of(
    clock: Clock, dtype: torch.dtype, left: Callable[[], float], tiny: bool
) -> dict[str, Callable[[], Any]]:
    """Every part by its key, in the order of their worth."""
    parts: dict[str, Callable[[], Any]] = {}
    if clock.on_gpu:
        parts["tests"] = lambda: part_tests(min(300.0, left()))
        parts["sanitizer"] = lambda: part_sanitizer(min(120.0, left()))
    parts["peaks"] = lambda: part_peaks(clock, 64 if tiny else 8192)
    name = str(dtype).removeprefix("torch.")
    steps = ((16, 24, 32),) if tiny else STEPS
    grid = ((16, 24, 32),) if tiny else tuple((m, d, h) for m in ROWS for d in FEATURES for h in UNITS)
    for shape in steps:
        parts[f"step {name} {shape}"] = lambda s=shape: part_step(clock, *s, dtype, s in AUTOTUNED)
    for shape in grid:
        parts[f"encode {name} {shape}"] = lambda s=shape: part_encode(clock, *s, dtype, s in AUTOTUNED)
    return parts


def succeeded(part: dict[str, Any] | None) -> bool:
    return part is not None and "failed" not in part and not part.get("problems")


def save(path: Path, results: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(results, indent=1) + "\n")
    temporary.replace(path)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Verify fastae on a GPU, then measure it.")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    parser.add_argument("--seconds", type=float, default=570.0, help="no part starts after this time")
    parser.add_argument("--out", type=Path, help="by default benchmarks/results/<device>.json")
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

    clock = Clock(torch.device(given.device))
    if clock.on_gpu:
        torch.cuda.set_device(clock.device)
    head = versions(clock.device)
    name = head["device"].lower().replace(" ", "-") + ("-tiny" if given.tiny else "")
    path = given.out or ROOT / "benchmarks" / "results" / f"{name}.json"
    results: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    if results.get("versions") != head:
        results = {"versions": head, "parts": {}}
    for key, part in parts_of(clock, getattr(torch, given.dtype), left, given.tiny).items():
        if succeeded(results["parts"].get(key)):
            continue
        if left() <= 1.0:
            print(f"out of time before {key}; run again to go on")
            break
        try:
            results["parts"][key] = part()
        except Exception as error:  # one part's failure is a result; the others still count
            results["parts"][key] = {"failed": f"{type(error).__name__}: {error}"[:500]}
        save(path, results)
        shown = results["parts"][key]
        print(key, json.dumps(shown.get("ratio", shown)), *shown.get("problems", {}).items(), flush=True)
    tests = results["parts"].get("tests", {})
    bad = [key for key, part in results["parts"].items() if not succeeded(part)]
    print(
        f"results in {path}; tests: {tests.get('tests', 0)}; parts with problems: {', '.join(bad) or 'none'}"
    )
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
