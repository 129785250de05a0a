"""The training engine: greedy pretraining, fine-tuning of the whole, a classifier on top; resumable exactly.

The noise of a step and the order of an epoch are functions of (seed, stage, step) and of (seed, stage, epoch)
alone, so a run that continues from a checkpoint repeats the losses of one that was never stopped, and no
random state has to be kept.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from ..arguments import resolve_device
from ..errors import CheckpointError, TrainingError
from ..nn import StackedAutoencoder
from .batches import Resident, Streamed, free_memory, open_rows
from .checkpoint import Checkpoint, TrainState, clean_run, find_checkpoint, load_checkpoint, save_checkpoint
from .config import Stage, TrainConfig
from .data import Dataset, load_dataset, split
from .interruption import Interruption
from .optimizer_state import optimizer_state, restore_optimizer
from .rates import Rates
from .reporting import Log, Progress, Silent
from .step import TrainingStep, steps_per_call

Terms = dict[str, Tensor]
_REPORT_SECONDS = 0.25
_EVALUATION_ROWS = 1024


@dataclass
class TrainResult:
    """A finished run: its folder, the trained modules, the data, and one log row an epoch."""

    path: Path
    stack: StackedAutoencoder
    classifier: nn.Sequential | None
    dataset: Dataset
    history: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class _Plan:
    """One stage: what it trains, on which loss, on which rows."""

    name: str
    stage: Stage
    module: nn.Module
    loss: Callable[[Tensor, Tensor | None], Terms]
    depth: int = 0  # layers below, whose clean codes are the input
    noisy_validation: bool = True  # an objective with noise is validated with noise, always the same


def train(
    config: TrainConfig, *, dataset: Dataset | None = None, progress: Progress | None = None
) -> TrainResult:
    """Train a stack as ``config`` says and return it; everything is also in the run's folder.

    Args:
        config: the run. With ``resume``, only ``out``, ``device``, ``memory_gib`` and ``checkpoint_seconds``
            are its own and all else is what the checkpoint holds.
        dataset: in place of ``config.data``, which becomes its name.
        progress: what to show; nothing by default.

    Raises:
        ValueError, DataError, CheckpointError: a wrong argument, file or folder, before training starts.
        TrainingError: the loss stopped being finite. KeyboardInterrupt: after Ctrl-C, with the step finished
            and a checkpoint written.
    """
    checkpoint = None
    if config.resume:
        assert config.out is not None
        checkpoint = load_checkpoint(config.out, with_state=True)
        try:
            kept = TrainConfig.from_dict(checkpoint.config)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(f"{checkpoint.path}: its configuration does not fit: {error}") from error
        config = replace(
            kept,
            out=config.out,
            resume=True,
            device=config.device,
            memory_gib=config.memory_gib,
            checkpoint_seconds=config.checkpoint_seconds,
        )
    if dataset is None:
        scaling = config.scaling if checkpoint is None else checkpoint.scaling
        dataset = load_dataset(config.data, test=config.test, scaling=scaling)
    else:
        config = replace(config, data=dataset.name, test=None)
    run = _run_folder(config, dataset)
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        return _Run(config, dataset, run, checkpoint, progress or Silent()).train()


def _run_folder(config: TrainConfig, dataset: Dataset) -> Path:
    if config.out is None:
        base = Path("runs") / Path(dataset.name).name.split(".")[0]
        number, run = 1, base
        while run.exists():
            number += 1
            run = base.with_name(f"{base.name}-{number}")
        return run
    run = Path(config.out)
    if config.resume:
        if (run / "config.json").is_file():
            raise CheckpointError(f"out: {run} is a single checkpoint; give the folder of its run")
        return run
    if run.exists() and not run.is_dir():
        raise CheckpointError(f"out: {run} is a file; a run needs a folder")
    try:
        find_checkpoint(run)
    except CheckpointError:
        return run
    raise CheckpointError(
        f"out: {run} holds a run already; continue it with --resume or choose another folder"
    )


class _Run:
    def __init__(
        self,
        config: TrainConfig,
        dataset: Dataset,
        run: Path,
        checkpoint: Checkpoint | None,
        progress: Progress,
    ) -> None:
        self.config, self.dataset, self.run, self.progress = config, dataset, run, progress
        self.device = resolve_device(config.device)
        self.dtype = torch.float64 if config.precision == "float64" else torch.float32
        try:
            self.rows, self.validation = split(dataset.train, config.validation, config.seed)
        except ValueError as error:
            raise ValueError(f"validation: {error}") from None
        if config.classifier and (dataset.num_classes or 0) < 2:
            kind = "none" if dataset.num_classes is None else "one class only"
            raise ValueError(
                f"classifier: needs labels of two classes or more, and {dataset.name} has {kind}"
            )

        self.classifier: nn.Sequential | None = None
        self.state: dict[str, Any] = {
            "stage": 0, "epoch": 0, "step": 0, "data": dataset.train.fingerprint(), "history": [],
            "seconds": 0.0, "budget": free_memory(self.device) // 2, "finished": False,
        }  # fmt: skip
        fresh, fields = self.state, set(self.state)
        self.tensors: dict[str, Tensor] = {}
        if checkpoint is None:
            sizes = config.sizes or (dataset.width, 512, 256)
            if sizes[0] != dataset.width:
                raise ValueError(
                    f"sizes: the first is {sizes[0]}, but {dataset.name} has rows of {dataset.width}"
                )
            self._seed(-1)
            options = config.layer_options(len(sizes) - 1)
            self._check_range(options[0].loss)
            self.stack = StackedAutoencoder(sizes, options, probes=config.probes, dtype=self.dtype).to(
                self.device
            )
        else:
            self.stack = checkpoint.stack.to(self.device)
            self.classifier = checkpoint.classifier
            self.state, self.tensors = checkpoint.state.values, checkpoint.state.tensors
            self.state_path = checkpoint.path / "state.json"
            if "optimizer" in self.state:
                fields |= {"sums", "best", "stale"}
            if missing := sorted(fields - set(self.state)):
                raise CheckpointError(f"{self.state_path}: {', '.join(missing)} missing")
            if self.stack.sizes[0] != dataset.width or self.state["data"] != fresh["data"]:
                raise CheckpointError(
                    f"{run}: was trained on other data than {dataset.name} is now "
                    f"({len(dataset.train)} rows of {dataset.width})"
                )
        # what is cached must not change when a run goes on, or its rounding would
        self.budget = self.state["budget"]
        if config.memory_gib is not None:
            self.budget = int(config.memory_gib * 2**30)
        self._check_schedules()
        self.optimizer: Optimizer | None = None
        self.best: dict[str, Tensor] = {}
        self.rate = 0.0
        self.plan_name = "training"
        self.saved = checkpoint is not None
        self.interruption = Interruption()
        self.saved_at = time.monotonic()

    def _check_schedules(self) -> None:
        """A schedule that does not fit its number of steps should show before the first stage."""
        for name, stage in self.config.stages.items():
            steps = stage.epochs * math.ceil(len(self.rows) / stage.rows_per_step(len(self.rows)))
            if steps and (name != "supervised" or self.config.classifier):
                try:
                    Rates(stage, steps)
                except ValueError as error:
                    raise ValueError(f"{name}.{error}") from None

    def _check_range(self, loss: str) -> None:
        if loss != "bce":
            return
        for _, chunk in self.dataset.train.chunks(4 * _EVALUATION_ROWS):
            if chunk.min() < 0.0 or chunk.max() > 1.0:
                raise ValueError(
                    f"loss: bce needs values in [0, 1], and {self.dataset.name} scaled by "
                    f"{self.dataset.scaling.name!r} has {chunk.min():g} to {chunk.max():g}; "
                    "use scaling unit or minmax, or the loss mse"
                )

    # --- stages -----------------------------------------------------------------------------------------

    def _stages(self) -> list[Callable[[], _Plan]]:
        """Every stage in order; a plan is made when its turn comes, from what was trained before."""
        config, stack = self.config, self.stack
        stages: list[Callable[[], _Plan]] = []
        if config.pretrain.epochs:
            for depth, layer in enumerate(stack.autoencoders):
                name = f"layer {depth + 1}"
                stages.append(partial(_Plan, name, config.pretrain, layer, _objective(layer), depth))
        if config.finetune.epochs:
            stages.append(partial(_Plan, "fine-tuning", config.finetune, stack, _objective(stack)))
        if config.classifier and config.supervised.epochs:
            stages.append(self._plan_classifier)
        return stages

    def _plan_classifier(self) -> _Plan:
        """Fine-tunes encoders of its own, so that the stack stays the autoencoder it is."""
        classes = self.dataset.num_classes
        assert classes is not None
        classifier = copy.deepcopy(self.stack).classifier(classes, self.config.supervised_dropout)
        if self.classifier is not None:
            classifier.load_state_dict(self.classifier.state_dict())
        self.classifier = classifier
        return _Plan("classifier", self.config.supervised, classifier, _cross_entropy(classifier), 0, False)

    def train(self) -> TrainResult:
        stages = self._stages()
        if not self.state["finished"]:
            try:
                self.run.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise CheckpointError(f"out: {self.run} cannot be made ({error})") from error
            clean_run(self.run)
            log = Log(self.run, self.state["history"], self.config.tensorboard)
            try:
                with self.interruption, self.progress:
                    for number in range(self.state["stage"], len(stages)):
                        self._run_stage(number, stages[number](), log)
                    self.state["finished"] = True
                    self._save()
            finally:
                log.close()
        if self.classifier is not None:
            self.classifier.eval()
        return TrainResult(self.run, self.stack.eval(), self.classifier, self.dataset, self.state["history"])

    def _run_stage(self, number: int, plan: _Plan, log: Log) -> None:
        state, stage, self.plan_name = self.state, plan.stage, plan.name
        training, validation = self._open(plan)
        size = stage.rows_per_step(len(training))
        per_epoch = math.ceil(len(training) / size)
        self.optimizer = stage.make_optimizer(list(plan.module.parameters()))
        if "optimizer" in state:  # resumed within this stage
            self._restore(self.optimizer, state.pop("optimizer"))
        else:
            state.update(epoch=0, step=0, sums={}, best=None, stale=0)
        done = state["epoch"] * per_epoch + state["step"]
        rates = Rates(stage, stage.epochs * per_epoch)
        rates.take(done)
        step = TrainingStep(
            plan.loss, self.optimizer, data=training.data, clip_norm=stage.clip_norm,
            autocast=self._autocast_dtype, graph=self.config.graph and not rates.cycles,
        )  # fmt: skip

        self.progress.start(plan.name, stage.epochs * per_epoch, done)
        while state["epoch"] < stage.epochs:
            self._run_epoch(number, plan, training, step, rates, size, per_epoch)
            row = self._close_epoch(number, plan, validation, per_epoch, rates.current)
            log.write(row)
            if stage.patience and self._stale_after(plan, row) >= stage.patience:
                break
        if stage.patience and self.best:
            plan.module.load_state_dict(self.best)
        self.progress.finish(_summary(state["history"], plan.name))
        state.update(stage=number + 1, epoch=0, step=0)
        for name in ("sums", "best", "stale"):
            del state[name]
        self.optimizer.zero_grad(set_to_none=True)  # gradients of a graph would keep its memory
        self.best, self.optimizer = {}, None
        if time.monotonic() - self.saved_at >= self.config.checkpoint_seconds:
            self._save()

    def _open(self, plan: _Plan) -> tuple[Resident | Streamed, Resident | Streamed | None]:
        """The stage's training and validation rows, as clean codes of the layers below."""
        stack = self.stack.eval()

        @torch.no_grad()
        def encode(x: Tensor) -> Tensor:
            with self._autocast():
                return stack.encode(x, plan.depth).to(self.dtype)

        below = encode if plan.depth else None
        width = stack.sizes[plan.depth]
        training = open_rows(self.rows, self.device, self.dtype, self.budget, below, width)
        validation = None
        if len(self.validation):
            validation = open_rows(self.validation, self.device, self.dtype, self.budget, below, width)
        plan.module.train()
        return training, validation

    def _run_epoch(
        self,
        number: int,
        plan: _Plan,
        training: Resident | Streamed,
        step: TrainingStep,
        rates: Rates,
        size: int,
        per_epoch: int,
    ) -> None:
        state, rows = self.state, len(training)
        order = torch.randperm(
            rows, generator=torch.Generator().manual_seed(self._mix(number, 1, state["epoch"]))
        )
        done = state["epoch"] * per_epoch
        seen = min(state["step"] * size, rows)
        step.reset(state["sums"])
        together = 1
        if step.captured:
            together = steps_per_call(sum(p.numel() for p in plan.module.parameters()), size)
        began_at = seen
        began = counted = reported_at = time.monotonic()

        for batch, steps, taken in training.calls(order[seen:], size, together):
            # one seed a call: those of a graph's steps follow from it
            self._seed(number, done + state["step"])
            rates.set_momenta(step.optimizer)
            try:
                step(*batch, rates=rates.take(steps))
            except FloatingPointError as error:
                raise self._not_finite(str(error)) from None
            state["step"] += steps
            seen += taken

            now = time.monotonic()
            due = self.interruption.requested or now - self.saved_at >= self.config.checkpoint_seconds
            if due or now - reported_at >= _REPORT_SECONDS or seen == rows:
                values = step.sums()
                if not math.isfinite(values["total"]):
                    raise self._not_finite(f"the loss is {values['total']}")
                state["sums"] = values
                rate = (seen - began_at) / max(now - began, 1e-9)
                means = {name: value / seen for name, value in values.items()}
                self.progress.update(done + state["step"], means, rate)
                self.rate, reported_at = rate, now
                if due:
                    state["seconds"] += now - counted
                    counted = now
                    self._save()
                    if self.interruption.requested:
                        raise KeyboardInterrupt(str(self.run))
        state["seconds"] += time.monotonic() - counted

    def _close_epoch(
        self, number: int, plan: _Plan, validation: Resident | Streamed | None, per_epoch: int, rate: float
    ) -> dict[str, Any]:
        """Validate, and add the epoch's row to the history."""
        state = self.state
        row: dict[str, Any] = {
            "stage": plan.name,
            "epoch": state["epoch"] + 1,
            "step": state["epoch"] * per_epoch + state["step"],
            "seconds": round(state["seconds"], 3),
            "rows_per_second": round(self.rate, 1),
            "lr": rate,
        }
        row |= {f"train_{name}": value / len(self.rows) for name, value in state["sums"].items()}
        if validation is not None:
            self._seed(number, -1)
            plan.module.train(plan.noisy_validation)
            sums: dict[str, float] = {}
            with torch.no_grad(), self._autocast():
                for x, labels in validation.batches(torch.arange(len(validation)), _EVALUATION_ROWS):
                    for name, value in plan.loss(x, labels).items():
                        sums[name] = sums.get(name, 0.0) + float(value) * len(x)
            row |= {f"validation_{name}": value / len(validation) for name, value in sums.items()}
            plan.module.train()
        state["history"].append(row)
        state.update(epoch=state["epoch"] + 1, step=0, sums={})
        return row

    def _stale_after(self, plan: _Plan, row: dict[str, Any]) -> int:
        """Epochs since the best validation loss; keeps the parameters of a new best."""
        state, loss = self.state, row["validation_total"]
        if state["best"] is None or loss < state["best"]:
            state.update(best=loss, stale=0)
            self.best = {name: value.detach().clone() for name, value in plan.module.state_dict().items()}
        else:
            state["stale"] += 1
        return state["stale"]

    # --- state ------------------------------------------------------------------------------------------

    def _save(self) -> None:
        modules = [self.stack] if self.classifier is None else [self.stack, self.classifier]
        if not all(bool(torch.isfinite(p).all()) for module in modules for p in module.parameters()):
            raise TrainingError(
                f"{self.plan_name}: the parameters are not finite after epoch {self.state['epoch'] + 1}, "
                f"step {self.state['step']}{self._advice()}"
            )
        tensors = {f"best.{name}": value for name, value in self.best.items()}
        values = dict(self.state)
        if self.optimizer is not None:
            values["optimizer"], own = optimizer_state(self.optimizer)
            tensors |= {f"optimizer.{name}": value for name, value in own.items()}
        config = {**self.config.to_dict(), "resume": False}
        save_checkpoint(
            self.run, self.stack, self.classifier, self.dataset, config, TrainState(values, tensors)
        )
        self.saved, self.saved_at = True, time.monotonic()

    def _restore(self, optimizer: Optimizer, values: dict[str, Any]) -> None:
        """Bring back the optimizer's state and the best parameters so far."""
        own = {}
        for key, tensor in self.tensors.items():
            kind, name = key.split(".", 1)
            if kind == "best":
                self.best[name] = tensor.to(self.device)
            else:
                own[name] = tensor
        try:
            restore_optimizer(optimizer, values, own)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(
                f"{self.state_path}: the optimizer's state does not fit: {error}"
            ) from error
        self.tensors = {}

    def _not_finite(self, what: str) -> TrainingError:
        return TrainingError(
            f"{self.plan_name}: {what} at epoch {self.state['epoch'] + 1}, "
            f"step {self.state['step'] + 1}{self._advice()}"
        )

    def _advice(self) -> str:
        option = {"fine-tuning": "finetune", "classifier": "supervised"}.get(self.plan_name, "pretrain")
        kept = (
            f"checkpoints in {self.run} are intact" if self.saved else f"nothing was saved in {self.run} yet"
        )
        return f"; {kept}. Try a lower {option}.lr, {option}.clip_norm 1, or another scaling"

    # --- random numbers and precision -------------------------------------------------------------------

    def _mix(self, *numbers: int) -> int:
        """A 63-bit seed from the run's seed and ``numbers`` (SplitMix64's finaliser, Steele et al. 2014)."""
        value = self.config.seed
        for number in numbers:
            value = (value + 0x9E3779B97F4A7C15 * (number + 2)) % 2**64
            value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 % 2**64
            value = (value ^ value >> 27) * 0x94D049BB133111EB % 2**64
            value ^= value >> 31
        return value >> 1

    def _seed(self, *numbers: int) -> None:
        """Seed the device's default generator, and the host's for initialisation."""
        seed = self._mix(0, *numbers)
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    @property
    def _autocast_dtype(self) -> torch.dtype | None:
        return torch.bfloat16 if self.config.precision == "bfloat16" else None

    def _autocast(self) -> torch.autocast:
        dtype = self._autocast_dtype
        return torch.autocast(self.device.type, dtype, enabled=dtype is not None)


def _objective(module: nn.Module) -> Callable[[Tensor, Tensor | None], Terms]:
    def loss(x: Tensor, labels: Tensor | None) -> Terms:
        return {name: term for name, term in module(x)._asdict().items() if term is not None}

    return loss


def _cross_entropy(classifier: nn.Module) -> Callable[[Tensor, Tensor | None], Terms]:
    def loss(x: Tensor, labels: Tensor | None) -> Terms:
        assert labels is not None
        logits = classifier(x).float()
        error = (logits.detach().argmax(1) != labels).float().mean()
        return {"total": F.cross_entropy(logits, labels), "error": error}

    return loss


def _summary(history: list[dict[str, Any]], stage: str) -> str:
    rows = [row for row in history if row["stage"] == stage]
    if not rows:
        return "nothing to do"
    last = rows[-1]
    keys = [key for key in ("train_total", "validation_total", "validation_error") if key in last]
    return "  ".join(f"{key.replace('_', ' ')} {last[key]:.4g}" for key in keys)
