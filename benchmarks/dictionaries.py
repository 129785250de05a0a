"""Time and memory of a dictionary's step over the number of latents, beside other libraries.

    python benchmarks/dictionaries.py [--latents 8192 32768] [--out dictionaries.csv] [--picture steps.png]

A step is the forward and the backward pass of topk on the same rows, on one thread, by the providers of
``fastae bench --groups sparse``, here with an encoder and a decoder of their own. Each provider runs in a
process of its own at each size. One line per run: the CPU time of its fastest step, and the peak memory of
the first one above what was allocated before. Libraries that are not installed are left out. ``--draw`` draws
the picture of files that were written before.
"""

from __future__ import annotations

import argparse
import csv
import functools
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from fastae.bench.groups import our_topk_step, peer_topk_step, topk_step
from fastae.bench.peers import PEERS, installed_peers
from fastae.bench.providers import FLOOR
from fastae.bench.results import CaseResult

PROVIDERS = (FLOOR, "fastae", "eager", "compile", *PEERS)


class Sizes(NamedTuple):
    rows: int
    features: int
    latents: int
    k: int


def loss_of(name: str, sizes: Sizes) -> Callable[..., torch.Tensor]:
    """The loss of rows, of an encoder's weight and bias and of a decoder's, by one provider."""
    if name in PEERS:
        return peer_topk_step(name, sizes.features, sizes.k)
    loss = functools.partial(our_topk_step if name == "fastae" else topk_step, k=sizes.k)
    return torch.compile(loss, dynamic=False) if name == "compile" else loss


def step_of(name: str, sizes: Sizes, width: int | None = None) -> Callable[[], object]:
    """A step of one provider; ``width`` latents in place of all."""
    H = width or sizes.latents
    x = torch.randn(sizes.rows, sizes.features)
    if name == FLOOR:
        weight, out = torch.randn(H, sizes.features), torch.empty(sizes.rows, H)
        return lambda: torch.mm(x, weight.t(), out=out)
    rows = torch.nn.functional.normalize(torch.randn(H, sizes.features), dim=1)
    leaves = [rows, torch.zeros(H), rows.clone(), torch.zeros(sizes.features)]
    for leaf in leaves:
        leaf.requires_grad_()
    loss = loss_of(name, sizes)

    def step() -> None:
        for leaf in leaves:
            leaf.grad = None
        loss(x, *leaves).backward()

    return step


def peak() -> float:
    """The most memory that this process has held, MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def measure(name: str, sizes: Sizes, repeats: int) -> tuple[float, float]:
    """CPU seconds of the fastest step, and MiB of the first one above what was held before."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    step_of(name, sizes._replace(rows=8), 64)()  # loads what loads late
    step = step_of(name, sizes)
    if name == "compile":
        step()  # compiles, which takes memory of its own
        Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    before = peak()
    step()
    memory, times = peak() - before, []
    for _ in range(repeats):
        began = time.process_time()
        step()
        times.append(time.process_time() - began)
    return min(times), memory


def draw(rows: list[dict[str, str]], sizes: Sizes) -> bytes:
    """The picture of the suite's group, as PNG."""
    from fastae.bench.pictures import dictionaries
    from fastae.plots.style import render

    cases = {}
    for row in rows:
        shape = f"{sizes.rows}x{sizes.features}x{row['latents']}"
        case = cases.setdefault(shape, CaseResult("sparse", "float32", shape, 0.0, [], 0.0, {"full": {}}))
        case.asked.append(row["provider"])
        case.times["full"][row["provider"]] = {"median": float(row["cpu_seconds"])}
        if row["provider"] != FLOOR:
            case.peak_bytes[row["provider"]] = int(2**20 * float(row["mib"]))
    return render(dictionaries(list(cases.values()), "float32"))


def main() -> None:
    parser = argparse.ArgumentParser(description="Time and memory of a dictionary's step.")
    parser.add_argument("--latents", type=int, nargs="+", default=[2048, 8192, 32_768, 131_072])
    parser.add_argument("--rows", type=int, default=1024)
    parser.add_argument("--features", type=int, default=512)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--providers", nargs="+", choices=PROVIDERS, default=PROVIDERS)
    parser.add_argument("--out", type=argparse.FileType("w"), default=sys.stdout)
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--draw", type=Path, nargs="+", help="files of results, in place of measuring")
    parser.add_argument(
        "--here", action="store_true", help="measure one provider at one size in this process"
    )
    given = parser.parse_args()
    sizes = Sizes(given.rows, given.features, given.latents[0], given.k)
    if given.here:
        print(*measure(given.providers[0], sizes, given.repeats))
        return
    rows: list[dict[str, str]] = []
    for path in given.draw or ():
        with path.open() as file:
            rows += csv.DictReader(file)
    if not rows:
        rows = measure_all(given)
    if given.picture is not None:
        given.picture.write_bytes(draw(rows, sizes))


def measure_all(given: argparse.Namespace) -> list[dict[str, str]]:
    writer = csv.DictWriter(given.out, ["provider", "latents", "cpu_seconds", "mib"], lineterminator="\n")
    writer.writeheader()
    rows: list[dict[str, str]] = []
    missing = PEERS.keys() - installed_peers()
    for latents in given.latents:
        for name in (n for n in given.providers if n not in missing):
            line = [sys.executable, __file__, "--here", "--providers", name, "--latents", str(latents)]
            for option in ("rows", "features", "k", "repeats"):
                line += [f"--{option}", str(getattr(given, option))]
            done = subprocess.run(line, stdout=subprocess.PIPE, text=True)
            if done.returncode:  # its error has been printed; the others go on
                continue
            found = done.stdout.split()
            seconds, memory = map(float, found[-2:])  # a library may print as well
            cells = [name, str(latents), f"{seconds:.4g}", f"{memory:.0f}"]
            rows.append(dict(zip(writer.fieldnames, cells, strict=True)))
            writer.writerow(rows[-1])
            given.out.flush()
    return rows


if __name__ == "__main__":
    main()
