"""The learning rates of a stage, step by step, computed on the host by torch's schedules."""

from __future__ import annotations

import warnings

import torch
from torch.optim import Optimizer

from .config import Stage

_MOMENTA = ("betas", "momentum")  # what some schedules cycle along


class Rates:
    """A schedule on an optimizer of nothing, so that its numbers stay on the host.

    Attributes:
        current: the rate that the next step takes.
        cycles: whether the schedule changes momenta, too; a captured step cannot follow that.

    Raises:
        ValueError: the schedule or one of its options does not fit the number of steps.
    """

    def __init__(self, stage: Stage, steps: int) -> None:
        self._optimizer = stage.make_optimizer([torch.zeros(1, requires_grad=True)])
        self._schedule = stage.make_schedule(self._optimizer, max(1, steps))
        self._optimizer.step()  # or the schedule would warn of being ahead of it
        self.cycles = bool(getattr(self._schedule, "cycle_momentum", False))

    @property
    def current(self) -> float:
        return float(self._optimizer.param_groups[0]["lr"])

    def set_momenta(self, optimizer: Optimizer) -> None:
        """Give an optimizer what its next step takes besides the rate, where the schedule changes it."""
        if self.cycles:
            momenta = self._optimizer.param_groups[0]
            for group in optimizer.param_groups:
                group.update({name: momenta[name] for name in _MOMENTA if name in group})

    def take(self, steps: int) -> list[float] | None:
        """The rates of the next ``steps`` steps; ``None`` without a schedule."""
        if self._schedule is None:
            return None
        rates = []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of torch's own bookkeeping between the two
            for _ in range(steps):
                rates.append(self.current)
                self._schedule.step()
        return rates
