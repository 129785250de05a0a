"""Checks of a run before it trains."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from ..errors import first_line
from ..losses import get_loss
from ..nn import Options
from .config import TrainConfig
from .data import Dataset
from .models import check_optimizer
from .rates import Rates

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

_CHUNK = 4096


def check_optimizers(config: TrainConfig, mesh: DeviceMesh) -> None:
    """Refuse an optimizer that cannot update parts of parameters, by taking a step on some."""
    for name, stage in config.stages.items():
        try:
            check_optimizer(stage.make_optimizer, mesh)
        except Exception as error:  # whatever an optimizer does with parts
            problem = f"{stage.optimizer} cannot update parts of parameters ({first_line(error)})"
            raise ValueError(f"{name}.optimizer: {problem}; use shard data") from None


def check_entrywise(config: TrainConfig) -> None:
    """Refuse an optimizer whose update of an entry depends on others, by steps on a whole and its halves."""
    rows = torch.linspace(-1.0, 1.0, 12).view(4, 3)
    for name, stage in config.stages.items():
        whole, *halves = (_stepped(stage.make_optimizer, part) for part in (rows, rows[:2], rows[2:]))
        if not torch.allclose(whole, torch.cat(halves)):
            raise ValueError(
                f"{name}.optimizer: expected one that updates each entry by itself with shard units, "
                f"got {stage.optimizer}"
            )


def _stepped(make: Callable[[Sequence[Tensor]], Optimizer], rows: Tensor) -> Tensor:
    parameter = rows.clone().requires_grad_()
    optimizer = make([parameter])
    for factor in (1.0, -0.5):
        parameter.grad = factor * (rows + 2.0 * rows.square())
        optimizer.step()
    return parameter.detach()


def check_schedules(config: TrainConfig, rows: int) -> None:
    """Refuse a schedule that does not fit its number of steps, before the first stage."""
    for name, stage in config.stages.items():
        steps = (stage.epochs or 0) * math.ceil(rows / stage.rows_per_step(rows))
        if steps and (name != "supervised" or config.classifier):
            try:
                Rates(stage, steps)
            except ValueError as error:
                raise ValueError(f"{name}.{error}") from None


def check_values(dataset: Dataset, options: Options) -> None:
    """Refuse training rows that a loss is not defined for; warn of such test rows."""
    if dataset.missing and not options.missing:
        raise ValueError(f"missing: expected True, as {dataset.name} has missing values, got False")
    loss = get_loss(options.loss)
    low, high = loss.bounds
    if not loss.is_bounded:
        return
    for rows in (dataset.train, dataset.test):
        for _, chunk in rows.chunks(_CHUNK) if rows is not None and not rows.is_sequential else ():
            least, most = float(np.fmin.reduce(chunk, axis=None)), float(np.fmax.reduce(chunk, axis=None))
            if loss.takes(least, most):
                continue
            what = f"{loss.name} needs values in [{low:g}, {high:g}], and {dataset.name} scaled by"
            what = f"{what} {dataset.scaling.name!r} has {least:g} to {most:g}"
            if rows is dataset.train:
                scalings = ("none",) if loss.of_counts else ("unit", "minmax")
                others = "" if dataset.scaling.name in scalings else f"scaling {' or '.join(scalings)}, or "
                raise ValueError(f"loss: {what}; use {others}the loss mse")
            warnings.warn(f"loss: {what} in its test part, which mse is reported for", stacklevel=5)
            break
