"""Shared parts of the recipes: training without labels, and classifiers on tuned or frozen codes."""

from __future__ import annotations

import copy
import math
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastae import Masking, functional
from fastae.nn import StackedAutoencoder
from fastae.train import Dataset, Stage, TrainConfig, TrainingError, TrainingStep, train
from fastae.train.batches import Resident
from fastae.train.data import Rows
from fastae.train.evaluation import evaluate
from fastae.train.rates import Rates

from .protocol import Measure

NONE = Stage(epochs=0)


@dataclass(frozen=True)
class FineTuning:
    """Training of a classifier on top of a stack: all layers together, on the cross-entropy.

    Attributes:
        stage: epochs, optimizer and schedule.
        input_dropout: share of the input's entries dropped.
        dropout: share of every code dropped.
    """

    stage: Stage = field(default_factory=Stage)
    input_dropout: float = 0.0
    dropout: float = 0.0


@dataclass(frozen=True)
class StackSettings:
    """A stack and its classifier.

    Attributes:
        layers: widths of the codes.
        autoencoder: options of the layers, as ``TrainConfig`` takes them.
        pretrain: how each layer is trained, on the clean codes of those below.
        supervised: how the classifier is trained.
    """

    layers: tuple[int, ...]
    autoencoder: Mapping[str, Any]
    pretrain: Stage
    supervised: FineTuning

    def shrink(self) -> StackSettings:
        """For a smoke test on small data."""
        return replace(
            self,
            layers=tuple(min(width, 100) for width in self.layers),
            pretrain=short(self.pretrain, 10),
            supervised=replace(self.supervised, stage=short(self.supervised.stage, 20)),
        )


def short(stage: Stage, epochs: int) -> Stage:
    """A stage of at most ``epochs`` epochs, in batches that suit small data."""
    least = epochs if stage.epochs is None else min(stage.epochs, epochs)
    return replace(stage, epochs=least, batch_size=0)


def learn(
    data: Dataset,
    layers: tuple[int, ...],
    autoencoder: Mapping[str, Any],
    seed: int,
    pretrain: Stage,
    finetune: Stage = NONE,
) -> StackedAutoencoder:
    """A stack trained without labels on all rows of ``data``, layer by layer and then as a whole."""
    with tempfile.TemporaryDirectory() as folder:
        config = TrainConfig(
            sizes=(data.width, *layers), pretrain=pretrain, finetune=finetune, validation=0.0, seed=seed,
            out=str(Path(folder) / "run"), checkpoint_seconds=1e9, tensorboard=False, **autoencoder,
        )  # fmt: skip
        return train(config, dataset=data).stack


def fine_tune(
    encoders: Iterable[nn.Module], rows: Rows, settings: FineTuning, seed: int, *, frozen: bool = False
) -> nn.Sequential:
    """A classifier that starts from copies of ``encoders``, with a new linear layer on top.

    Args:
        encoders: linear layers with their activations; none gives a classifier of the rows themselves.
        rows: labelled rows, all of which are trained on.
        settings: how.
        seed: of the order and the dropout.
        frozen: leave the encoders as they are: logistic regression on their standardised codes.

    Raises:
        TrainingError: the loss stopped being finite.
    """
    assert rows.labels is not None
    torch.manual_seed(seed)
    layers: list[nn.Module] = [Dropout(settings.input_dropout)]
    width, device = rows.width, torch.device("cpu")
    for encoder in encoders:
        layers += [copy.deepcopy(encoder).requires_grad_(not frozen), Dropout(settings.dropout)]
        weight = layers[-2].get_parameter("weight")
        width, device = weight.shape[0], weight.device
    if frozen:
        layers.append(standardize(nn.Sequential(*layers).eval(), rows))
    head = nn.Linear(width, 1 + int(rows.labels.max()), device=device)
    for parameter in head.parameters():  # so that the first steps do not destroy what was pretrained
        nn.init.zeros_(parameter)
    classifier = nn.Sequential(*layers, head).train()
    stage, trained = settings.stage, [p for p in classifier.parameters() if p.requires_grad]
    source = Resident(torch.from_numpy(rows.read()).to(device), torch.from_numpy(rows.labels).to(device))
    size = stage.rows_per_step(len(rows))
    epochs = stage.chosen_epochs(len(rows), 15)
    rates = Rates(stage, epochs * -(-len(rows) // size))
    optimizer = stage.make_optimizer(trained)
    step = TrainingStep(
        lambda x, labels: F.cross_entropy(classifier(x), labels), optimizer, data=source.data,
        clip_norm=stage.clip_norm, graph=not rates.cycles,
    )  # fmt: skip
    for _ in range(epochs):
        step.reset()
        try:
            for batch, steps, _ in source.calls(torch.randperm(len(rows)), size, 1):
                rates.set_momenta(optimizer)
                step(*batch, rates=rates.take(steps))
            if not math.isfinite(step.sums()["total"]):
                raise FloatingPointError("the loss is not finite")
        except FloatingPointError as error:
            raise TrainingError(f"supervised: {error}; try a lower learning rate") from None
    return classifier.eval()


class Standardize(nn.Module):
    """(x - mean) / deviation, with fixed numbers a feature."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, mean: Tensor, deviation: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("deviation", deviation)

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.deviation


@torch.no_grad()
def standardize(features: nn.Module, rows: Rows) -> Standardize:
    """A module that standardises ``features(x)`` over rows; almost constant features are scaled little."""
    count, mean, squares = 0, torch.zeros(()), torch.zeros(())
    device = next((p.device for p in features.parameters()), torch.device("cpu"))
    for _, values in rows.chunks(4096):
        codes = features(torch.from_numpy(values).to(device)).double()
        count += len(codes)
        mean, squares = mean.to(codes) + codes.sum(0), squares.to(codes) + codes.square().sum(0)
    mean, squares = mean / count, squares / count
    deviation = (squares - mean.square()).clamp_(min=0.0).sqrt()
    return Standardize(mean.float(), deviation.float() + 0.01)


class Dropout(nn.Module):
    """``nn.Dropout`` with noise that no mask is stored for, which takes half the time on a CPU."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and self.p):
            return x
        return functional.corrupt(x, Masking(self.p)) / (1.0 - self.p)


def fit_stack(settings: StackSettings, data: Dataset, seed: int) -> Measure:
    """Pretrain a stack, fine-tune a classifier; figures of the first layer are those before fine-tuning.

    ``error``: of the classifier, in %. ``saturated``: codes of the first layer below .05 or above .95, in %.
    ``jacobian``: ||dh/dx||_F^2 of the first layer, summed over all entries, mean over rows.
    """
    stack = learn(data, settings.layers, settings.autoencoder, seed, settings.pretrain)
    classifier = fine_tune(stack.encoder(), data.train, settings.supervised, seed)

    def measure(rows: Rows) -> dict[str, float]:
        figures = evaluate(stack, rows, classifier=classifier)
        first = figures["layers"][0]
        return {
            "error": 100 * figures["classifier_error"],
            "saturated": 100 * first["saturated_share"],
            "jacobian": first["contractive_penalty"],
        }

    return measure


@torch.no_grad()
def percent_wrong(classifier: nn.Module, x: Tensor, labels: np.ndarray) -> float:
    """The share of rows x [N, D] that a classifier gives a wrong label, in %."""
    predicted = classifier(x.to(next(classifier.parameters()))).argmax(1)
    return 100 * float(np.mean(predicted.cpu().numpy() != labels))
