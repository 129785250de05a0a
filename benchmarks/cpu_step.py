"""Ratios of a training step on this CPU, all from one run: ``python benchmarks/cpu_step.py``.

The floor is the five bare matrix products of the step in the same dtype. Providers are interleaved, so that
what slows the machine slows all of them; the medians are printed with their spread. Before anything is timed,
the gradients of every provider are checked against float64.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from providers import CONTRACTIVE, Problem, Step, clean_fused, closed_form, fused, jacobian, step_of, steps_of

SHAPES = ((256, 784, 1000), (1024, 784, 2000), (1024, 2048, 4096))


def interleaved(steps: dict[str, Step], seconds: float) -> dict[str, list[float]]:
    """Times of every step in seconds, a round of all of them after another."""
    for step in steps.values():
        step()
        step()
    times: dict[str, list[float]] = {name: [] for name in steps}
    began = time.perf_counter()
    while time.perf_counter() - began < seconds or len(next(iter(times.values()))) < 5:
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            times[name].append(time.perf_counter() - start)
    return times


def check(problem: Problem) -> None:
    """Without noise every provider must give the gradients of float64."""
    import fastae

    def exact(x, weight, bias, decoder_bias):
        loss = fastae.reference.autoencoder_loss(x, weight, bias, None, decoder_bias, contractive=CONTRACTIVE)
        return loss.total.mean()

    wide, narrow = problem.cast(64, torch.float64), problem.cast(64, torch.float32)
    step_of(exact, wide)()
    step_of(clean_fused, narrow)()
    for a, b in zip(narrow.parameters, wide.parameters, strict=True):
        assert a.grad is not None and b.grad is not None
        error = float((a.grad - b.grad).norm() / b.grad.norm())
        if not error < 1e-5:
            raise SystemExit(f"gradients differ from float64 by {error:.1e}: no ratio is worth printing")


def peak_mebibytes(provider: str, shape: tuple[int, int, int]) -> float:
    """Growth of the resident set over three steps, in a process of its own."""
    command = [sys.executable, __file__, "--peak", provider, *map(str, shape)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def _print_peak(provider: str, shape: tuple[int, int, int]) -> None:
    objective = {"fastae": fused, "eager": closed_form}[provider]
    small, problem = Problem.make(8, 8, 8), Problem.make(*shape)
    step_of(objective, small)()  # what the first call loads is not the step's
    # the high-water mark of a new process is its parent's until it is reset
    Path("/proc/self/clear_refs").write_text("5")
    before = _resident("VmRSS")
    for _ in range(3):
        step_of(objective, problem)()
    print((_resident("VmHWM") - before) / 1024)


def _resident(field: str) -> int:
    """A field of this process's status in KiB."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith(field)).split()[1])


def loop_ratio(seconds: float) -> float:
    """Time of the engine's epochs over that of a hand-written loop around the same step."""

    import numpy as np

    import fastae
    from fastae.train import Stage, TrainConfig, train
    from fastae.train.data import dataset_from_arrays

    rows, m, d, h = 51200, 256, 784, 1000
    x = np.random.default_rng(0).random((rows, d), dtype=np.float32)
    dataset = dataset_from_arrays("random", x, scaling="none")
    stage = Stage(epochs=1, batch_size=m)
    options = {"corruption": "masking:0.25", "contractive": CONTRACTIVE}
    model = fastae.nn.Autoencoder(d, h, **options)
    optimizer = stage.make_optimizer(list(model.parameters()))
    data = torch.from_numpy(x)

    def by_hand() -> float:
        start = time.perf_counter()
        for index in torch.randperm(rows).split(m):
            optimizer.zero_grad(set_to_none=True)
            model(data[index]).total.backward()
            optimizer.step()
        return time.perf_counter() - start

    def by_engine() -> float:
        with tempfile.TemporaryDirectory() as folder:
            config = TrainConfig(
                sizes=(d, h), corruption=("masking:0.25",), contractive=(CONTRACTIVE,), pretrain=stage,
                validation=0.0, out=str(Path(folder) / "run"), tensorboard=False, checkpoint_seconds=1e9,
            )  # fmt: skip
            return train(config, dataset=dataset).history[-1]["seconds"]

    ratios = []
    began = time.perf_counter()
    while time.perf_counter() - began < seconds or len(ratios) < 3:
        ratios.append(by_engine() / by_hand())
    return statistics.median(ratios)


def main() -> None:
    parser = argparse.ArgumentParser(description="Ratios of a training step on this CPU.")
    parser.add_argument("--seconds", type=float, default=10.0, help="for each shape")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--peak", nargs=4, metavar=("PROVIDER", "M", "D", "H"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak:
        provider, *shape = arguments.peak
        _print_peak(provider, tuple(map(int, shape)))  # pyright: ignore[reportArgumentType]
        return

    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, float32")
    print("ratios to the five bare products: median (quartiles)")
    for shape in SHAPES:
        problem = Problem.make(*shape)
        check(problem)
        steps = steps_of(problem, not arguments.no_compile)
        times = interleaved(steps, arguments.seconds)
        floor = statistics.median(times["products"])
        parts = [f"products {1e3 * floor:.2f} ms"]
        for name in list(steps)[1:]:
            low, middle, high = statistics.quantiles(times[name], n=4)
            parts.append(f"{name} {middle / floor:.3f} ({low / floor:.3f}-{high / floor:.3f})")
        if "compile" in times:
            ratio = statistics.median(times["fastae"]) / statistics.median(times["compile"])
            parts.append(f"fastae/compile {ratio:.3f}")
        peaks = {name: peak_mebibytes(name, shape) for name in ("fastae", "eager")}
        parts.append(f"peak memory {peaks['fastae']:.0f} MiB, eager {peaks['eager']:.0f} MiB")
        print(f"{shape}: " + ", ".join(parts), flush=True)

    small = Problem.make(8, 784, 1000)  # a whole batch of Jacobians would not fit
    large = Problem.make(256, 784, 1000)
    times = interleaved(
        {"jacobian": step_of(jacobian, small), "fastae": step_of(fused, large)}, arguments.seconds
    )
    ratio = (statistics.median(times["jacobian"]) / 8) / (statistics.median(times["fastae"]) / 256)
    print(f"true Jacobian, (784, 1000): {ratio:.0f} x the time a row of fastae")
    print(f"engine's epoch over a hand-written loop, (256, 784, 1000): {loop_ratio(arguments.seconds):.3f}")


if __name__ == "__main__":
    main()
