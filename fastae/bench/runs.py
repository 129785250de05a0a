"""Whole runs: greedy pretraining of a stack, by the engine and by a script as one writes it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from ..train.config import Stage, TrainConfig
from ..train.data import Dataset
from .problems import CONTRACTIVE, MASKING, Problem, Shape
from .providers import FLOOR, Floor, Unavailable

BATCH, LEARNING_RATE = 256, 1e-3
TOLERANCE = 0.1
"""Largest relative difference of a layer's last loss from the script's. Initial weights, order and noise
differ, and after one short epoch other seeds alone make a difference of 6 %."""


@dataclass(frozen=True)
class Run:
    """One run of pretraining: layer by layer, masking, contractive, tied weights, cross-entropy, Adam.

    Attributes:
        dataset: what is trained on; all its training rows.
        sizes: widths of the input and of every code.
        epochs: of each layer.
    """

    dataset: Dataset
    sizes: tuple[int, ...]
    epochs: int

    def __str__(self) -> str:
        return f"{self.dataset.name} {'-'.join(map(str, self.sizes))}, {self.epochs} epochs"

    @property
    def batch(self) -> int:
        return min(BATCH, len(self.dataset.train))


def first_rows(dataset: Dataset, rows: int) -> Dataset:
    """A data set of the first training rows alone."""
    return replace(dataset, train=dataset.train.subset(slice(0, rows)), test=None)


Losses = list[float]
"""The mean loss of each layer's last epoch, over all rows."""


def providers_of(run: Run, dtype: str, device: torch.device) -> dict[str, Callable[[], Losses]]:
    """The floor, fastae and the script; each call does the whole run.

    Raises:
        Unavailable: the engine does not train in this dtype.
    """
    if dtype == "float16":
        raise Unavailable("the engine trains in float32, float64 and bfloat16")
    return {
        FLOOR: _products(run, dtype, device),
        "fastae": lambda: by_engine(run, dtype, device),
        "script": lambda: by_script(run, dtype, device),
    }


def by_engine(run: Run, dtype: str, device: torch.device) -> Losses:
    """By fastae.train, checkpoints and logs of the run included."""
    from ..train.engine import train

    with tempfile.TemporaryDirectory() as folder:
        config = TrainConfig(
            sizes=run.sizes,
            corruption=(str(MASKING),),
            contractive=(CONTRACTIVE,),
            pretrain=Stage(epochs=run.epochs, batch_size=run.batch, lr=LEARNING_RATE),
            finetune=Stage(epochs=0),
            validation=0.0,
            precision=dtype,  # pyright: ignore[reportArgumentType]
            device=str(device),
            out=str(Path(folder) / "run"),
            tensorboard=False,
        )
        history = train(config, dataset=run.dataset).history
    return [row["train_total"] for row in history if row["epoch"] == run.epochs]


def _products(run: Run, dtype: str, device: torch.device) -> Callable[[], Losses]:
    """The bare products of every full batch of the run, and nothing else."""
    from .groups import STEP

    steps = run.epochs * (len(run.dataset.train) // run.batch)
    floors = [
        Floor(STEP, Problem.make(Shape(run.batch, d, h), getattr(torch, dtype), device))
        for d, h in zip(run.sizes, run.sizes[1:], strict=False)
    ]

    def products() -> Losses:
        for floor in floors:
            for _ in range(steps):
                floor.full()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return []

    return products


# --- the script -----------------------------------------------------------------------------------------


class RowDataset(TorchDataset[Tensor]):
    """Rows of a tensor."""

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Tensor:
        return self.rows[index]


class DenoisingAutoencoder(nn.Module):
    """One layer with tied weights."""

    def __init__(self, features: int, units: int) -> None:
        super().__init__()
        self.encoder = nn.Linear(features, units)
        self.decoder_bias = nn.Parameter(torch.zeros(features))
        nn.init.xavier_uniform_(self.encoder.weight, gain=4.0)
        nn.init.zeros_(self.encoder.bias)

    def encode(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.encoder(x))

    def forward(self, x: Tensor) -> Tensor:
        h = self.encode(x * (torch.rand_like(x) >= MASKING.p))
        logits = F.linear(h, self.encoder.weight.t(), self.decoder_bias)
        reconstruction = F.binary_cross_entropy_with_logits(logits, x, reduction="none").sum(1).mean()
        slope = h * (1.0 - h)
        penalty = (slope.square() @ self.encoder.weight.square().sum(1)).mean()
        return reconstruction + CONTRACTIVE * penalty


def by_script(run: Run, dtype: str, device: torch.device) -> Losses:
    """The same run as a plain script; the codes of a layer are computed once for the next."""
    working = torch.float64 if dtype == "float64" else torch.float32
    mixed = torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bfloat16")
    rows = torch.from_numpy(run.dataset.train.read()).to(working)
    losses = []
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(0)
        for features, units in zip(run.sizes, run.sizes[1:], strict=False):
            model = DenoisingAutoencoder(features, units).to(device, working)
            optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, fused=True)
            loader = DataLoader(
                RowDataset(rows), batch_size=run.batch, shuffle=True, pin_memory=device.type == "cuda"
            )
            total = torch.zeros((), device=device)
            for _ in range(run.epochs):
                total.zero_()
                for batch in loader:
                    x = batch.to(device, non_blocking=True)
                    with mixed:
                        loss = model(x)
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    total += loss.detach() * len(x)
            losses.append(total.item() / len(rows))
            with torch.no_grad(), mixed:
                codes = [model.encode(part.to(device)).to("cpu", working) for part in rows.split(4096)]
            rows = torch.cat(codes)
    return losses
