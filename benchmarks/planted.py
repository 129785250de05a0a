"""Recovery of planted features: how many of the directions that rows are made of a dictionary finds.

    python benchmarks/planted.py [--seeds 0 1 2] [--steps 500] [--out planted.csv]

By default rows are sums of a few of 2,048 directions with noise, and dictionaries have 16,384 latents. With
SAELens installed its modules get the same rows in the same order, the same number of steps, and the same
optimizer: Adam with a linear warm-up and decay. All else is each library's default. One line per run: the
share of directions that some decoder row points to at a cosine of 0.9, the share of the variance that is not
explained and the number of active latents per row (both on rows held out), and the CPU time of training.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastae import AuxK
from fastae.nn import SparseAutoencoder
from fastae.optim import DictionaryAdam
from fastae.sparse import BatchTopK, JumpReLU, TopK
from fastae.sparse.planted import planted_rows, recovered_share

ACTIVE, NOISE, RATE, HELD_OUT = 4, 0.02, 3e-3, 4096
L0, BANDWIDTH, THRESHOLD = 0.1, 0.05, 0.01  # of JumpReLU: a direction explains about 1, noise D * NOISE^2
RULES = ("topk", "batch_topk", "jump_relu")


class Sizes(NamedTuple):
    width: int
    latents: int
    batch: int


class Trained(NamedTuple):
    decoder: Tensor  # [H, D]
    reconstruct: Callable[[Tensor], Tensor]
    active: Callable[[Tensor], float]  # latents per row
    seconds: float


def train(
    parameters: Sequence[nn.Parameter],
    loss: Callable[[Tensor], Tensor],
    batches: Sequence[Tensor],
    optimizer: torch.optim.Optimizer | None = None,
) -> float:
    """CPU seconds of one step on each batch."""
    optimizer = optimizer or torch.optim.Adam(parameters, lr=RATE)
    began, steps = time.process_time(), len(batches)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, (step + 1) / (0.05 * steps), (steps - step) / (0.2 * steps))
        optimizer.zero_grad()
        loss(batches[step]).backward()
        optimizer.step()
    return time.process_time() - began


def fastae(rule: str, rows: Tensor, sizes: Sizes) -> Trained:
    rules = {
        "topk": TopK(ACTIVE),
        "batch_topk": BatchTopK(ACTIVE),
        "jump_relu": JumpReLU(THRESHOLD, BANDWIDTH),
    }
    auxk = AuxK(dead_after=100 * sizes.batch) if "topk" in rule else None
    sae = SparseAutoencoder(sizes.width, sizes.latents, rules[rule], auxk=auxk, l0=0.0 if auxk else L0)
    sae.initialize_(rows[: 64 * sizes.batch])
    optimizer = DictionaryAdam(sae, RATE)
    seconds = train([], lambda x: sae(x).total, rows.split(sizes.batch), optimizer)
    sae.eval()
    if rule == "batch_topk":
        sae.calibrate_threshold_(rows[: 16 * sizes.batch])
    return Trained(
        sae.decoder.weight.detach(),
        sae.reconstruct,
        lambda x: float((sae.encode(x).values > 0).sum() / len(x)),
        seconds,
    )


def saelens(rule: str, rows: Tensor, sizes: Sizes) -> Trained:
    from sae_lens.saes import batchtopk_sae, jumprelu_sae, topk_sae  # pyright: ignore[reportMissingImports]
    from sae_lens.saes.sae import TrainStepInput  # pyright: ignore[reportMissingImports]

    widths: dict[str, Any] = {"d_in": sizes.width, "d_sae": sizes.latents}
    if rule == "topk":
        sae = topk_sae.TopKTrainingSAE(topk_sae.TopKTrainingSAEConfig(**widths, k=ACTIVE))
    elif rule == "batch_topk":
        config = batchtopk_sae.BatchTopKTrainingSAEConfig(**widths, k=float(ACTIVE))
        sae = batchtopk_sae.BatchTopKTrainingSAE(config)
    else:
        sae = jumprelu_sae.JumpReLUTrainingSAE(
            jumprelu_sae.JumpReLUTrainingSAEConfig(
                **widths,
                l0_coefficient=L0,
                jumprelu_init_threshold=THRESHOLD,
                jumprelu_bandwidth=BANDWIDTH,
            )
        )
    silent = torch.zeros(sizes.latents)  # forward passes since each latent was active, as its trainer counts

    def loss(x: Tensor) -> Tensor:
        given = TrainStepInput(x, {"l0": L0}, silent > 100, 0, False)
        out = sae.training_forward_pass(given)
        silent.add_(1.0)[(out.feature_acts > 0).any(0)] = 0.0
        return out.loss

    seconds = train(list(sae.parameters()), loss, rows.split(sizes.batch))
    sae.eval()

    def encode(x: Tensor) -> Tensor:
        if rule != "batch_topk":
            return sae.encode(x)
        scaled = sae.encode_with_hidden_pre(x)[1] * sae.W_dec.norm(dim=1)
        return scaled * (scaled > sae.topk_threshold)

    return Trained(
        sae.W_dec.detach(),
        lambda x: sae.decode(encode(x)),
        lambda x: float((encode(x) > 0).sum() / len(x)),
        seconds,
    )


LIBRARIES: dict[str, Callable[[str, Tensor, Sizes], Trained]] = {"fastae": fastae, "saelens": saelens}


@torch.no_grad()
def measure(trained: Trained, rows: Tensor, directions: Tensor) -> dict[str, float]:
    error = sum(float((trained.reconstruct(x) - x).square().sum()) for x in rows.split(512))
    return {
        "recovered": recovered_share(trained.decoder, directions),
        "fvu": error / float((rows - rows.mean(0)).square().sum()),
        "l0": sum(trained.active(x) for x in rows.split(512)) / len(rows.split(512)),
        "cpu_seconds": trained.seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Recovery of planted features.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--features", type=int, default=2048)
    parser.add_argument("--latents", type=int, default=16_384)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--rules", nargs="+", choices=RULES, default=RULES)
    parser.add_argument("--libraries", nargs="+", choices=LIBRARIES, default=list(LIBRARIES))
    parser.add_argument("--out", type=argparse.FileType("w"), default=sys.stdout)
    given = parser.parse_args()
    libraries = {name: LIBRARIES[name] for name in given.libraries}
    if not importlib.util.find_spec("sae_lens"):
        libraries.pop("saelens", None)
    fields = ["seed", "rule", "library", "steps", "recovered", "fvu", "l0", "cpu_seconds"]
    writer = csv.DictWriter(given.out, fields, lineterminator="\n")
    writer.writeheader()
    sizes = Sizes(given.width, given.latents, given.batch)
    for seed in given.seeds:
        rows, directions = planted_rows(
            given.steps * given.batch + HELD_OUT, given.width, given.features, ACTIVE, NOISE, seed
        )
        for rule in given.rules:
            for name, library in libraries.items():
                torch.manual_seed(seed)
                trained = library(rule, rows[HELD_OUT:], sizes)
                figures = measure(trained, rows[:HELD_OUT], directions)
                place = {"seed": seed, "rule": rule, "library": name, "steps": given.steps}
                writer.writerow({**place, **{k: f"{v:.4g}" for k, v in figures.items()}})
                given.out.flush()


if __name__ == "__main__":
    main()
