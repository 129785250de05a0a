"""One stage of training: its epochs, their validation, and early stopping."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..distributed import World
from ..errors import TrainingError
from ..interruption import Interrupted, Interruption
from ..share import sharing
from ..tensors import sum_dtype
from .batches import Resident, Streamed
from .checkpoint_files import fill
from .config import Stage, TrainConfig
from .optimizer_state import optimizer_state, restore_optimizer
from .rates import Rates
from .reporting import Progress
from .seeds import mix, seed_generators
from .spread import own_state, whole_state
from .state import RunState
from .step import TrainingStep, steps_per_call

Terms = dict[str, Tensor]
Loss = Callable[[Tensor, "Tensor | None"], Terms]
"""Terms of the loss from features [B, D] and labels [B]; ``total`` is minimised."""

_REPORT_SECONDS = 0.25
_EVALUATION_ROWS = 1024


@dataclass(frozen=True)
class Plan:
    """A stage's parameters, loss and rows.

    Attributes:
        name: of the stage in the log.
        option: of the stage in the configuration.
        stage: its settings.
        epochs: number of epochs in all.
        module: what is trained.
        loss: what is minimised.
        depth: number of layers below, whose clean codes are the input.
        noisy_validation: validate with the noise of training, the same in every epoch.
        least: the least value of the loss of each entry of a target, where that is not 0.
    """

    name: str
    option: str
    stage: Stage
    epochs: int
    module: nn.Module
    loss: Loss
    depth: int = 0
    noisy_validation: bool = True
    least: Callable[[Tensor], Tensor] | None = None


@dataclass
class Session:
    """State shared by the stages of a run.

    Attributes:
        config: the run's configuration.
        folder: the run's folder.
        world: the processes that train together, and the device of this one.
        state: the position of the run.
        display: what shows the progress.
        save: writes a checkpoint.
        saved: whether the run has a checkpoint.
        saved_at: time of the last one, by the monotonic clock.
        plan: the current stage.
    """

    config: TrainConfig
    folder: Path
    world: World
    state: RunState
    display: Progress
    interruption: Interruption
    save: Callable[[], None]
    saved: bool
    saved_at: float
    plan: Plan | None = None

    @property
    def device(self) -> torch.device:
        return self.world.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of parameters and rows."""
        return torch.float64 if self.config.precision == "float64" else torch.float32

    @property
    def autocast_dtype(self) -> torch.dtype | None:
        return torch.bfloat16 if self.config.precision == "bfloat16" else None

    def autocast(self) -> torch.autocast:
        dtype = self.autocast_dtype
        return torch.autocast(self.device.type, dtype, enabled=dtype is not None)

    def seed(self, *numbers: int) -> None:
        """Seed the default generators with a function of the run's seed and ``numbers``."""
        seed_generators(self.device, mix(self.config.seed, 0, *numbers))

    @property
    def checkpoint_is_due(self) -> bool:
        return time.monotonic() - self.saved_at >= self.config.checkpoint_seconds

    def failure(self, problem: str, step: int) -> TrainingError:
        """An error that says where the run stands, what is kept, and which options may help."""
        name, option = ("training", "pretrain") if self.plan is None else (self.plan.name, self.plan.option)
        kept = f"checkpoints in {self.folder} are intact"
        if not self.saved:
            kept = f"nothing was saved in {self.folder} yet"
        return TrainingError(
            f"{name}: {problem} epoch {self.state.epoch + 1}, step {step}; {kept}. "
            f"Try a lower {option}.lr, {option}.clip_norm 1, or another scaling"
        )


class StageRunner:
    """Trains one stage, from its beginning or from a checkpoint.

    Args:
        session: what all stages share.
        number: index of the stage, for its seeds.
        plan: what to train.
        training: rows to train on.
        validation: rows to validate on, if any.
    """

    def __init__(
        self,
        session: Session,
        number: int,
        plan: Plan,
        training: Resident | Streamed,
        validation: Resident | Streamed | None,
    ) -> None:
        stage = plan.stage
        self.plan = session.plan = plan
        self._session, self._state, self._number = session, session.state, number
        self._training, self._validation = training, validation
        self._rows_per_step = stage.rows_per_step(len(training))
        self._steps_per_epoch = math.ceil(len(training) / self._rows_per_step)
        self._steps = plan.epochs * self._steps_per_epoch
        self._rates = Rates(stage, self._steps)
        self._rows_per_second = 0.0
        self.optimizer = stage.make_optimizer(list(plan.module.parameters()))
        self.best: dict[str, Tensor] = {}
        self._least: float | None = None  # of the validation rows, once they have been read

    def restore(self, values: Any, tensors: Mapping[str, Tensor]) -> None:
        """Bring back what :meth:`saved` gave.

        Raises:
            ValueError: it does not fit the stage; begins with the name of the file.
        """
        state = self._state
        if not (state.epoch < self.plan.epochs and state.step <= self._steps_per_epoch):
            raise ValueError(f"state.json: epoch {state.epoch}, step {state.step} is beyond the stage's end")
        own = restore_optimizer(self.optimizer, self.plan.stage.make_optimizer, values)
        kept = self.plan.module.state_dict() if state.best is not None else {}
        self.best = {name: torch.empty_like(value) for name, value in kept.items()}
        best = {f"best.{name}": value for name, value in self.best.items()}
        own = best | {f"optimizer.{name}": value for name, value in own.items()}
        fill(own, own_state(self.plan.module, tensors))

    def saved(self) -> tuple[dict[str, Any], Iterator[tuple[str, Tensor]]]:
        """The optimizer's state as JSON values; names and tensors, with all units, of a checkpoint."""
        values, own = optimizer_state(self.optimizer)
        tensors = {f"best.{name}": value for name, value in self.best.items()}
        tensors |= {f"optimizer.{name}": value for name, value in own.items()}
        return values, whole_state(self.plan.module, tensors)

    def epochs(self) -> Iterator[dict[str, Any]]:
        """Train to the end of the stage; yields each epoch's row of the log."""
        session, state, plan = self._session, self._state, self.plan
        done = self._steps_done
        self._rates.take(done)
        step = TrainingStep(
            plan.loss,
            self.optimizer,
            data=self._training.data,
            clip_norm=plan.stage.clip_norm,
            autocast=session.autocast_dtype,
            graph=session.config.graph and not self._rates.cycles,
            world=session.world,
            module=plan.module,
            compile=session.config.compile,
        )
        session.display.start(plan.name, self._steps, done, plan.epochs)
        plan.module.train()
        while state.epoch < plan.epochs:
            self._train_epoch(step)
            row = self._log_row()
            state.end_epoch(row)
            session.display.end_epoch(row)
            yield row
            if plan.stage.patience and self._stop_early(row["validation_total"]):
                break
        if self.best:
            plan.module.load_state_dict(self.best)
        session.display.finish()
        self.optimizer.zero_grad(set_to_none=True)  # gradients of a graph would keep its memory

    @property
    def _steps_done(self) -> int:
        return self._state.epoch * self._steps_per_epoch + self._state.step

    def _train_epoch(self, step: TrainingStep) -> None:
        """Train to the end of the current epoch, from wherever it stands."""
        session, state, rows = self._session, self._state, len(self._training)
        order = self._training.order(mix(session.config.seed, self._number, 1, state.epoch))
        seen = began_at = min(state.step * self._rows_per_step, rows)
        step.reset(state.sums)
        together = 1
        if step.captured:
            together = steps_per_call(
                sum(p.numel() for p in self.plan.module.parameters()), self._rows_per_step
            )
        began = counted = reported_at = time.monotonic()
        world = session.world
        for batch, steps, taken in self._training.calls(order, self._rows_per_step, together, seen, world):
            # one seed per call: those of a graph's steps follow from it
            session.seed(self._number, self._steps_done)
            self._rates.set_momenta(step.optimizer)
            try:
                step(*batch, rates=self._rates.take(steps), total=taken // steps if world.grouped else None)
            except FloatingPointError as error:
                raise session.failure(f"{error} at", state.step + 1) from None
            state.step += steps
            seen += taken

            now = time.monotonic()
            signal, save, report = world.poll(
                session.interruption.number, session.checkpoint_is_due, now - reported_at >= _REPORT_SECONDS
            )
            due = signal or save
            if due or report or seen == rows:
                self._rows_per_second = (seen - began_at) / max(now - began, 1e-9)
                self._report(step.sums(), seen)
                reported_at = now
            if due:
                state.seconds += now - counted
                counted = now
                session.save()
                if signal:
                    world.barrier()  # a launcher ends the first process as soon as another one has ended
                    raise Interrupted(int(signal), session.folder)
        state.seconds += time.monotonic() - counted

    def _report(self, sums: dict[str, float], seen: int) -> None:
        """Keep and show the loss over the ``seen`` rows of the epoch so far."""
        state = self._state
        if not math.isfinite(sums["total"]):
            raise self._session.failure(f"the loss is {sums['total']} at", state.step + 1)
        state.sums = sums
        means = {name: value / seen for name, value in sums.items()}
        self._session.display.update(self._steps_done, means, self._rows_per_second)

    def _log_row(self) -> dict[str, Any]:
        """The log's row of the epoch that has just been trained, with its validation."""
        state, rows = self._state, len(self._training)
        row = {
            "stage": self.plan.name,
            "epoch": state.epoch + 1,
            "step": self._steps_done,
            "seconds": round(state.seconds, 3),
            "rows_per_second": round(self._rows_per_second, 1),
            "lr": self._rates.current,
        }
        row |= {f"train_{name}": value / rows for name, value in state.sums.items()}
        if self._validation is not None:
            means = self._validate(self._validation)
            row |= {f"validation_{name}": value for name, value in means.items()}
        return row

    def _validate(self, source: Resident | Streamed) -> dict[str, float]:
        """The mean of each term of the loss over the rows of ``source``."""
        session, plan = self._session, self.plan
        session.seed(self._number, -1)
        plan.module.train(plan.noisy_validation)
        least = plan.least if self._least is None else None
        sums: dict[str, float] = {}
        world, begun = session.world, 0
        with torch.no_grad(), session.autocast():
            for x, labels in source.batches(torch.arange(len(source)), _EVALUATION_ROWS, world=world):
                share = world.share(min(_EVALUATION_ROWS, len(source) - begun))
                begun += len(x) if share is None else share.total
                with sharing(share):
                    terms = plan.loss(x, labels)
                rows = len(x) if share is None else share.rows
                for name, value in terms.items():
                    sums[name] = sums.get(name, 0.0) + float(value) * rows
                if least is not None:
                    sums["least"] = sums.get("least", 0.0) + float(least(x[:rows]).sum(dtype=torch.float64))
        plan.module.train()
        values = world.sum(torch.tensor(list(sums.values()), dtype=torch.float64)).tolist()
        means = {name: value / len(source) for name, value in zip(sums, values, strict=True)}
        if plan.least is not None:
            self._least = means.setdefault("least", self._least)
        return means

    def _stop_early(self, loss: float) -> bool:
        """Keep the parameters of a new best validation loss; whether patience has run out."""
        state = self._state
        if state.best is None or loss < state.best:
            state.best, state.stale = loss, 0
            self.best = {
                name: value.detach().clone() for name, value in self.plan.module.state_dict().items()
            }
        else:
            state.stale += 1
        return state.stale >= self.plan.stage.patience


def objective(module: nn.Module) -> Loss:
    """The terms of an autoencoder's or a stack's own objective."""

    def loss(x: Tensor, labels: Tensor | None) -> Terms:
        return {name: term for name, term in module(x)._asdict().items() if term is not None}

    return loss


def cross_entropy(classifier: nn.Module) -> Loss:
    """The cross-entropy of a classifier's logits, and the share of rows that it gets wrong."""

    def loss(x: Tensor, labels: Tensor | None) -> Terms:
        assert labels is not None
        logits = classifier(x)
        logits = logits.to(sum_dtype(logits.dtype))
        error = (logits.detach().argmax(1) != labels).to(logits.dtype).mean()
        return {"total": F.cross_entropy(logits, labels), "error": error}

    return loss
