"""Training from shards that do not fit: memory, rows per second, step time, and the quality of the shuffle.

    python benchmarks/streaming.py --gigabytes 4 --folder /tmp/shards --json streaming.json
    python benchmarks/streaming.py shuffle --data mnist --json shuffle.json

Rates are the best of interleaved rounds of both sides in one process. Memory is the process's anonymous
memory, sampled every 10 ms: pages of mapped files belong to the system's cache.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastae.nn import Autoencoder
from fastae.train import Shards, ShardWriter, TrainingStep, dataset_from_arrays, load_dataset
from fastae.train.batches import Resident, Streamed, open_rows
from fastae.train.data.rows import chosen_window
from fastae.train.order import WindowOrder
from fastae.train.seeds import epoch_order, mix

CPU = torch.device("cpu")
WIDTH, UNITS, BATCH = 512, 1024, 1024


def anonymous_bytes() -> int:
    """Anonymous memory of this process (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("RssAnon")).split()[1])


class Peak:
    """The most anonymous memory while a block runs, above what there was before."""

    def __enter__(self) -> Peak:
        self.before = self.most = anonymous_bytes()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._stop.wait(0.01):
            self.most = max(self.most, anonymous_bytes())

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def bytes(self) -> int:
        return self.most - self.before


def write(folder: Path, gigabytes: float, dtype: torch.dtype) -> None:
    """Shards of rows near a low-dimensional surface, so that there is something to learn."""
    generator = torch.Generator().manual_seed(0)
    basis = torch.randn(16, WIDTH, generator=generator) / 4
    with ShardWriter(folder, rows_per_shard=1 << 17, dtype=dtype) as writer:
        for _ in range(max(1, round(gigabytes * 1e9 / (dtype.itemsize * WIDTH) / 65536))):
            writer.write(torch.sigmoid(torch.randn(65536, 16, generator=generator) @ basis))


def forget(folder: Path) -> None:
    """Drop the files from the system's cache."""
    for file in folder.iterdir():
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_by_numpy(folder: Path) -> int:
    """Read every shard from its first row to its last, as the float32 batches that training takes."""
    shards, rows = Shards(folder), 0
    dtype = np.dtype(shards.kind)
    for file in shards.files:
        values = np.memmap(file, dtype, "r", os.path.getsize(file) % (dtype.itemsize * WIDTH))
        values = values.reshape(-1, WIDTH)
        for low in range(0, len(values), BATCH):
            rows += len(np.array(values[low : low + BATCH], np.float32))
    return rows


def open_streamed(folder: Path, budget: float) -> Streamed:
    window = chosen_window(None, budget / 2**30)
    rows = load_dataset(str(folder), scaling="none").train
    source = open_rows(rows, CPU, torch.float32, int(budget), window_mib=window)
    assert isinstance(source, Streamed)
    return source


def read_in_windows(source: Streamed) -> int:
    """Read all rows in the order of an epoch, as float32 batches."""
    return sum(len(x) for x, _ in source.batches(source.order(0), BATCH))


def streaming(
    folder: Path, gigabytes: float, dtype: torch.dtype, budget: float, rounds: int, steps: int
) -> dict[str, Any]:
    if not folder.exists():
        write(folder, gigabytes, dtype)
    kept = open_streamed(folder, budget)
    read_in_windows(kept)  # its buffers are new in the first epoch
    sides: dict[str, Callable[[bool], int]] = {
        "numpy": lambda cold: read_by_numpy(folder),
        # a map that is open keeps its pages
        "windows": lambda cold: read_in_windows(open_streamed(folder, budget) if cold else kept),
    }
    seconds: dict[str, list[float]] = {}
    processor: dict[str, list[float]] = {}
    rows = 0
    for number in range(2 * rounds):
        for name, work in sides.items():
            name = f"{name}, {'cold' if number % 2 else 'warm'}"
            if number % 2:
                kept.rows.array.close()  # pyright: ignore[reportAttributeAccessIssue]
                forget(folder)
            began, used = time.perf_counter(), time.process_time()
            rows = work(number % 2 == 1)
            seconds.setdefault(name, []).append(time.perf_counter() - began)
            processor.setdefault(name, []).append(time.process_time() - used)
    result: dict[str, Any] = {
        "bytes": rows * dtype.itemsize * WIDTH,
        "dtype": str(dtype),
        "rows": rows,
        "budget": budget,
        "window_bytes": kept.window * dtype.itemsize * WIDTH,
        "seconds": seconds,
        "processor_seconds": processor,
        "rows_per_second": {name: rows / min(values) for name, values in seconds.items()},
    }
    for cache in ("warm", "cold"):
        result[f"ratio, {cache}"] = min(seconds[f"numpy, {cache}"]) / min(seconds[f"windows, {cache}"])
    with Peak() as peak:
        read_in_windows(open_streamed(folder, budget))
    result["peak_bytes_reading"] = peak.bytes
    in_memory = kept.rows.read(np.arange(0, rows, max(1, rows // 65536)))
    kept.spare.clear()
    return result | step_times(open_streamed(folder, budget), in_memory, steps)


def step_times(source: Streamed, in_memory: np.ndarray, steps: int) -> dict[str, Any]:
    """Interleaved blocks of 20 steps on shards and in memory, and the peak of a model trained on shards."""
    resident = Resident(torch.from_numpy(in_memory))

    def forever(kind: Streamed | Resident) -> Iterator[torch.Tensor]:
        epoch = 0
        while True:
            yield from (x for x, _ in kind.batches(kind.order(epoch), BATCH) if len(x) == BATCH)
            epoch += 1

    torch.manual_seed(0)
    model = Autoencoder(WIDTH, UNITS)
    step = TrainingStep(model, torch.optim.Adam(model.parameters()))
    times: dict[str, list[float]] = {"streamed": [], "in memory": []}
    with Peak() as peak:
        sides = {"streamed": forever(source), "in memory": forever(resident)}
        for _ in range(steps // 20):
            for name, batches in sides.items():
                began = time.perf_counter()
                for _ in range(20):
                    step(next(batches))
                times[name].append((time.perf_counter() - began) / 20)
    medians = {name: statistics.median(values) for name, values in times.items()}
    least = {name: min(values) for name, values in times.items()}
    return {
        "step_seconds": medians, "least_step_seconds": least,
        "step_ratio": medians["streamed"] / medians["in memory"],
        "least_step_ratio": least["streamed"] / least["in memory"],
        "peak_bytes_training": peak.bytes,
    }  # fmt: skip


def shuffle(data: str, epochs: int, seeds: int) -> dict[str, Any]:
    """Loss on held-out rows after training on rows sorted by label, by the rows of a window."""
    loaded = load_dataset(data)
    assert loaded.train.labels is not None and loaded.test is not None
    by_label = np.argsort(loaded.train.labels, kind="stable")
    rows = dataset_from_arrays("sorted", loaded.train.read(by_label), scaling="none").train
    x, held_out = torch.from_numpy(rows.read()), torch.from_numpy(loaded.test.read())
    count, results = len(x), {}
    kinds = {"all": 0, **{f"1/{n}": count // n for n in (4, 16, 64, 256)}, "none": -1}
    for name, window in kinds.items():
        losses = []
        for seed in range(seeds):
            torch.manual_seed(seed)
            model = Autoencoder(rows.width, 64)
            step = TrainingStep(model, torch.optim.Adam(model.parameters()))
            for epoch in range(epochs):
                order: torch.Tensor | WindowOrder = epoch_order(count, mix(seed, epoch))
                if window:
                    order = WindowOrder(rows.edges(window), window, mix(seed, epoch))
                if window < 0:
                    order = torch.arange(count)
                for batch, _ in Resident(x).batches(order, 128):
                    step(batch)
            with torch.no_grad():
                losses.append(float(model(held_out).total))
        results[name] = losses
    return {"data": data, "rows": count, "epochs": epochs, "loss_by_window": results}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", nargs="?", choices=("streaming", "shuffle"), default="streaming")
    parser.add_argument("--gigabytes", type=float, default=4.0)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--budget", type=float, default=500e6, help="bytes of memory for data")
    parser.add_argument("--folder", type=Path, default=Path("streaming-shards"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.what == "shuffle":
        result = shuffle(options.data, options.epochs, options.seeds)
    else:
        made = not options.folder.exists()
        dtype = getattr(torch, options.dtype)
        result = streaming(
            options.folder, options.gigabytes, dtype, options.budget, options.rounds, options.steps
        )
        if made:
            shutil.rmtree(options.folder)
    text = json.dumps({**result, "torch": torch.__version__, "threads": torch.get_num_threads()}, indent=2)
    print(text)
    if options.json is not None:
        options.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
