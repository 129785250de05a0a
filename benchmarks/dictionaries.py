"""Time and memory of a dictionary's step over the number of latents, beside other libraries.

    python benchmarks/dictionaries.py [--latents 8192 32768] [--out dictionaries.csv] [--picture steps.png]

A step is the forward and the backward pass of topk on the same rows, on one thread. Each provider runs in a
process of its own at each size. One line per run: the CPU time of its fastest step, and the peak memory of
the first one above what was allocated before. ``product`` is the encoder's bare matrix product. Libraries
that are not installed are left out.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastae.nn import SparseAutoencoder


class Sizes(NamedTuple):
    rows: int
    features: int
    latents: int
    k: int


Step = Callable[[], object]


def product(x: Tensor, sizes: Sizes) -> Step:
    weight, out = torch.randn(sizes.latents, sizes.features), torch.empty(sizes.rows, sizes.latents)
    return lambda: torch.mm(x, weight.t(), out=out)


def fastae(x: Tensor, sizes: Sizes) -> Step:
    sae = SparseAutoencoder(sizes.features, sizes.latents, f"topk:{sizes.k}")
    return step_of(sae, lambda: sae(x).total)


def dense(x: Tensor, sizes: Sizes) -> Step:
    sae = SparseAutoencoder(sizes.features, sizes.latents, f"topk:{sizes.k}")  # its parameters alone

    def loss() -> Tensor:
        z = F.linear(x - sae.decoder.bias, sae.encoder.weight, sae.encoder.bias)
        values, latents = z.relu().topk(sizes.k, dim=1, sorted=False)
        code = torch.zeros_like(z).scatter(1, latents, values)
        return (code @ sae.decoder.weight + sae.decoder.bias - x).square().sum(1).mean()

    return step_of(sae, loss)


def saelens(x: Tensor, sizes: Sizes) -> Step:
    from sae_lens.saes.sae import TrainStepInput  # pyright: ignore[reportMissingImports]
    from sae_lens.saes.topk_sae import (  # pyright: ignore[reportMissingImports]
        TopKTrainingSAE,
        TopKTrainingSAEConfig,
    )

    config = TopKTrainingSAEConfig(d_in=sizes.features, d_sae=sizes.latents, k=sizes.k)
    sae, given = TopKTrainingSAE(config), TrainStepInput(x, {}, None, 0, False)
    return step_of(sae, lambda: sae.training_forward_pass(given).loss)


def sparsify(x: Tensor, sizes: Sizes) -> Step:
    os.environ["SPARSIFY_DISABLE_TRITON"] = "1"
    from sparsify import SparseCoder, SparseCoderConfig  # pyright: ignore[reportMissingImports]

    sae = SparseCoder(sizes.features, SparseCoderConfig(num_latents=sizes.latents, k=sizes.k))
    return step_of(sae, lambda: sae(x).fvu)


def dictionary_learning(x: Tensor, sizes: Sizes) -> Step:
    from dictionary_learning.trainers.top_k import TopKTrainer  # pyright: ignore[reportMissingImports]

    trainer = TopKTrainer(
        steps=10,
        warmup_steps=1,
        activation_dim=sizes.features,
        dict_size=sizes.latents,
        k=sizes.k,
        layer=0,
        lm_name="none",
        device="cpu",
        seed=0,
    )
    return step_of(trainer.ae, lambda: trainer.loss(x, step=0))


def step_of(module: torch.nn.Module, loss: Callable[[], Tensor]) -> Step:
    def step() -> None:
        module.zero_grad()
        loss().backward()

    return step


PROVIDERS: dict[str, tuple[Callable[[Tensor, Sizes], Step], str]] = {
    "product": (product, "torch"),
    "fastae": (fastae, "fastae"),
    "dense": (dense, "torch"),
    "saelens": (saelens, "sae_lens"),
    "sparsify": (sparsify, "sparsify"),
    "dictionary_learning": (dictionary_learning, "dictionary_learning"),
}
"""Each with the package that it needs."""


def peak() -> float:
    """The most memory that this process has held, MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def measure(name: str, sizes: Sizes, repeats: int) -> tuple[float, float]:
    """CPU seconds of the fastest step, and MiB of the first one above what was held before."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    make = PROVIDERS[name][0]
    make(torch.randn(8, sizes.features), sizes._replace(rows=8, latents=64))()  # loads what loads late
    step = make(torch.randn(sizes.rows, sizes.features), sizes)
    before = peak()
    step()
    memory, times = peak() - before, []
    for _ in range(repeats):
        began = time.process_time()
        step()
        times.append(time.process_time() - began)
    return min(times), memory


def draw(rows: list[dict[str, str]]) -> bytes:
    """Seconds and memory over latents, a curve per provider, as PNG."""
    from fastae.plots.style import COLOURS, MUTED, new_figure, render, styled

    @styled
    def figure():
        made = new_figure("A step over the number of latents", 3.9)
        for place, (column, label) in enumerate(
            {"cpu_seconds": "CPU seconds of a step", "mib": "peak memory of a step, MiB"}.items(), 1
        ):
            axes = made.add_subplot(1, 2, place)
            for number, name in enumerate(dict.fromkeys(row["provider"] for row in rows)):
                own = [row for row in rows if row["provider"] == name]
                colour = MUTED if name == "product" else COLOURS[(number - 1) % len(COLOURS)]
                if column == "cpu_seconds" or name != "product":
                    x, y = ([float(row[key]) for row in own] for key in ("latents", column))
                    axes.plot(x, y, marker="o", color=colour, label=name)
            axes.set(xscale="log", yscale="log", xlabel="latents", ylabel=label)
        handles = made.axes[0].get_legend_handles_labels()
        made.legend(*handles, loc="outside lower center", ncols=len(handles[0]))
        return made

    return render(figure())


def main() -> None:
    parser = argparse.ArgumentParser(description="Time and memory of a dictionary's step.")
    parser.add_argument("--latents", type=int, nargs="+", default=[2048, 8192, 32_768, 131_072])
    parser.add_argument("--rows", type=int, default=1024)
    parser.add_argument("--features", type=int, default=512)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--providers", nargs="+", choices=PROVIDERS, default=list(PROVIDERS))
    parser.add_argument("--out", type=argparse.FileType("w"), default=sys.stdout)
    parser.add_argument("--picture", type=Path)
    parser.add_argument(
        "--here", action="store_true", help="measure one provider at one size in this process"
    )
    given = parser.parse_args()
    if given.here:
        sizes = Sizes(given.rows, given.features, given.latents[0], given.k)
        print(*measure(given.providers[0], sizes, given.repeats))
        return
    writer = csv.DictWriter(given.out, ["provider", "latents", "cpu_seconds", "mib"], lineterminator="\n")
    writer.writeheader()
    rows: list[dict[str, str]] = []
    for latents in given.latents:
        for name in (n for n in given.providers if importlib.util.find_spec(PROVIDERS[n][1])):
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
    if given.picture is not None:
        given.picture.write_bytes(draw(rows))


if __name__ == "__main__":
    main()
