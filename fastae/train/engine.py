"""The training engine: greedy pretraining, fine-tuning of the whole, a classifier on top; resumable exactly.

The noise of a step is a function of (seed, stage, step), the order of an epoch one of (seed, stage, epoch).
A run that continues from a checkpoint therefore repeats the losses of one that was never stopped.
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
from torch import Tensor, nn

from ..devices import resolve_device
from ..errors import CheckpointError
from ..nn import StackedAutoencoder
from .batches import Resident, Streamed, free_memory, open_rows
from .checkpoint import Checkpoint, TrainState, clean_run, find_checkpoint, load_checkpoint, save_checkpoint
from .config import TrainConfig
from .data import Dataset, Rows, load_dataset, split
from .interruption import Interruption
from .rates import Rates
from .reporting import Log, Progress, Silent
from .stage import Plan, Session, StageRunner, cross_entropy, objective
from .state import RunState

_CHUNK = 4096


@dataclass
class TrainResult:
    """A finished run: its folder, the trained modules, the data, and one log row per epoch."""

    path: Path
    stack: StackedAutoencoder
    classifier: nn.Sequential | None
    dataset: Dataset
    history: list[dict[str, Any]] = field(default_factory=list)


def train(
    config: TrainConfig,
    *,
    dataset: Dataset | None = None,
    progress: Progress | None = None,
    announce: Callable[[str], None] | None = None,
) -> TrainResult:
    """Train a stack as ``config`` says and return it; everything is also in the run's folder.

    Args:
        config: the run. With ``resume``, only ``out``, ``device``, ``memory_gib`` and ``checkpoint_seconds``
            are its own and all else is what the checkpoint holds.
        dataset: in place of ``config.data``, which becomes its name.
        progress: what to show; nothing by default.
        announce: called with one line on the data and the device, before training starts.

    Raises:
        ValueError, DataError, CheckpointError: a wrong argument, file or folder, before training starts.
        TrainingError: the loss stopped being finite.
        KeyboardInterrupt: after Ctrl-C, with the current step finished and a checkpoint written.
    """
    checkpoint = None
    if config.resume:
        assert config.out is not None
        checkpoint = load_checkpoint(config.out, with_state=True)
        config = _resumed(config, checkpoint)
    if dataset is None:
        dataset = _load_data(config) if checkpoint is None else checkpoint.load_data()
    else:
        config = replace(
            config, data=dataset.name, test=None, label=(), labels=None, drop=(), test_fraction=0.0
        )
    folder = _run_folder(config, dataset)
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        run = _Run(config, dataset, folder, checkpoint, progress or Silent())
        if announce is not None:
            announce(f"{dataset.describe()}; on {run.session.device}")
        return run.train()


def _load_data(config: TrainConfig) -> Dataset:
    return load_dataset(
        config.data,
        test=config.test,
        scaling=config.scaling,
        label=config.label,
        labels=config.labels,
        drop=config.drop,
        test_fraction=config.test_fraction,
        seed=config.seed,
    )


def _resumed(config: TrainConfig, checkpoint: Checkpoint) -> TrainConfig:
    """The configuration of a checkpoint, with what a resumed run may choose anew."""
    try:
        kept = TrainConfig.from_dict(checkpoint.config)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{checkpoint.path}: its configuration does not fit: {error}") from error
    own = ("out", "resume", "device", "memory_gib", "checkpoint_seconds")
    return replace(kept, **{name: getattr(config, name) for name in own})


def _run_folder(config: TrainConfig, dataset: Dataset) -> Path:
    """The folder of a run; ``CheckpointError`` where it cannot be one."""
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
    """A run from its checks to its last checkpoint."""

    def __init__(
        self,
        config: TrainConfig,
        dataset: Dataset,
        folder: Path,
        checkpoint: Checkpoint | None,
        display: Progress,
    ) -> None:
        self.config, self.dataset = config, dataset
        self.rows, self.validation = _split(config, dataset)
        if config.classifier:
            dataset.check_classes()
        _check_schedules(config, len(self.rows))
        self.restored: TrainState | None = None
        self.runner: StageRunner | None = None
        device = resolve_device(config.device)
        state = RunState(data=dataset.train.fingerprint(), budget=free_memory(device) // 2)
        if checkpoint is not None:
            state = self._check_state(checkpoint, state)
        self.session = Session(
            config,
            folder,
            device,
            state,
            display,
            Interruption(),
            save=self._save,
            saved=checkpoint is not None,
            saved_at=time.monotonic(),
        )
        if checkpoint is None:
            self.stack = self._new_stack()
            self.classifier = None
        else:
            self.stack, self.classifier = checkpoint.stack.to(device), checkpoint.classifier
        # what is cached must not change when a run goes on, or its rounding would
        self.budget = state.budget if config.memory_gib is None else int(config.memory_gib * 2**30)

    def _new_stack(self) -> StackedAutoencoder:
        config, dataset, session = self.config, self.dataset, self.session
        sizes = config.sizes or (dataset.width, 512, 256)
        if sizes[0] != dataset.width:
            raise ValueError(
                f"sizes: the first is {sizes[0]}, but {dataset.name} has rows of {dataset.width}"
            )
        options = config.layer_options(len(sizes) - 1)
        if options[0].loss == "bce":
            _check_unit_interval(dataset)
        session.seed(-1)
        stack = StackedAutoencoder(sizes, options, probes=config.probes, dtype=session.dtype)
        return stack.to(session.device)

    def _check_state(self, checkpoint: Checkpoint, fresh: RunState) -> RunState:
        """The state that a checkpoint holds; ``CheckpointError`` where it does not fit the data."""
        values, dataset = checkpoint.state.values, self.dataset
        within_stage = "optimizer" in values
        try:
            state = RunState.from_json(values, within_stage=within_stage)
        except ValueError as error:
            raise CheckpointError(f"{checkpoint.path / 'state.json'}: {error}") from error
        if checkpoint.stack.sizes[0] != dataset.width or not dataset.train.matches(state.data):
            raise CheckpointError(
                f"{checkpoint.path.parent}: was trained on other data than {dataset.name} is now "
                f"({len(dataset.train)} rows of {dataset.width})"
            )
        if within_stage:
            self.restored, self.restored_from = checkpoint.state, checkpoint.path
        return state

    # --- stages -----------------------------------------------------------------------------------------

    def train(self) -> TrainResult:
        session, state, stages = self.session, self.session.state, self._stages()
        if not state.finished:
            try:
                session.folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise CheckpointError(f"out: {session.folder} cannot be made ({error})") from error
            clean_run(session.folder)
            log = Log(session.folder, state.history, self.config.tensorboard)
            try:
                with session.interruption, session.display:
                    while state.stage < len(stages):
                        self._run_stage(stages[state.stage](), log)
                    state.finished = True
                    self._save()
            finally:
                log.close()
        if self.classifier is not None:
            self.classifier.eval()
        return TrainResult(session.folder, self.stack.eval(), self.classifier, self.dataset, state.history)

    def _stages(self) -> list[Callable[[], Plan]]:
        """Every stage in order; a plan is made when its turn comes, from what was trained before."""
        config, stack = self.config, self.stack
        stages: list[Callable[[], Plan]] = []
        if config.pretrain.epochs:
            for depth, layer in enumerate(stack.autoencoders):
                plan = partial(Plan, f"layer {depth + 1}", "pretrain", config.pretrain, layer)
                stages.append(partial(plan, objective(layer), depth))
        if config.finetune.epochs:
            plan = partial(Plan, "fine-tuning", "finetune", config.finetune, stack)
            stages.append(partial(plan, objective(stack)))
        if config.classifier and config.supervised.epochs:
            stages.append(self._plan_classifier)
        return stages

    def _plan_classifier(self) -> Plan:
        """The classifier's stage; it fine-tunes encoders of its own, so that the stack stays as it is."""
        classes = self.dataset.num_classes
        assert classes is not None
        classifier = copy.deepcopy(self.stack).classifier(classes, self.config.supervised_dropout)
        if self.classifier is not None:
            classifier.load_state_dict(self.classifier.state_dict())
        self.classifier = classifier
        return Plan(
            "classifier",
            "supervised",
            self.config.supervised,
            classifier,
            cross_entropy(classifier),
            noisy_validation=False,
        )

    def _run_stage(self, plan: Plan, log: Log) -> None:
        session, state = self.session, self.session.state
        runner = StageRunner(session, state.stage, plan, *self._open(plan.depth))
        if self.restored is None:
            state.begin_stage()
        else:
            self._restore(runner, self.restored)
            self.restored = None
        self.runner = runner
        for row in runner.epochs():
            log.write(row)
        self.runner = None
        state.end_stage()
        if session.checkpoint_is_due:
            self._save()

    def _restore(self, runner: StageRunner, saved: TrainState) -> None:
        try:
            runner.restore(saved.values["optimizer"], saved.tensors)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            path = self.restored_from / "state.json"
            raise CheckpointError(f"{path}: the optimizer's state does not fit: {error}") from error

    def _open(self, depth: int) -> tuple[Resident | Streamed, Resident | Streamed | None]:
        """Training and validation rows of a stage, as clean codes of the ``depth`` layers below."""
        session, stack = self.session, self.stack.eval()

        @torch.no_grad()
        def encode(x: Tensor) -> Tensor:
            with session.autocast():
                return stack.encode(x, depth).to(session.dtype)

        def open_part(rows: Rows) -> Resident | Streamed:
            below = encode if depth else None
            return open_rows(rows, session.device, session.dtype, self.budget, below, stack.sizes[depth])

        return open_part(self.rows), open_part(self.validation) if len(self.validation) else None

    def _save(self) -> None:
        session, runner = self.session, self.runner
        modules = [self.stack] if self.classifier is None else [self.stack, self.classifier]
        if not all(bool(torch.isfinite(p).all()) for module in modules for p in module.parameters()):
            raise session.failure("the parameters are not finite after", session.state.step)
        values, tensors = session.state.to_json(), {}
        if runner is not None:
            values["optimizer"], tensors = runner.saved()
        config = {**self.config.to_dict(), "resume": False}
        state = TrainState(values, tensors)
        save_checkpoint(session.folder, self.stack, self.classifier, self.dataset, config, state)
        session.saved, session.saved_at = True, time.monotonic()


# --- checks before training -----------------------------------------------------------------------------


def _split(config: TrainConfig, dataset: Dataset) -> tuple[Rows, Rows]:
    try:
        return split(dataset.train, config.validation, config.seed)
    except ValueError as error:
        raise ValueError(f"validation: {error}") from None


def _check_schedules(config: TrainConfig, rows: int) -> None:
    """Refuse a schedule that does not fit its number of steps, before the first stage."""
    for name, stage in config.stages.items():
        steps = stage.epochs * math.ceil(rows / stage.rows_per_step(rows))
        if steps and (name != "supervised" or config.classifier):
            try:
                Rates(stage, steps)
            except ValueError as error:
                raise ValueError(f"{name}.{error}") from None


def _check_unit_interval(dataset: Dataset) -> None:
    """Refuse rows that cross-entropy is not defined for."""
    for _, chunk in dataset.train.chunks(_CHUNK):
        if chunk.min() < 0.0 or chunk.max() > 1.0:
            raise ValueError(
                f"loss: bce needs values in [0, 1], and {dataset.name} scaled by "
                f"{dataset.scaling.name!r} has {chunk.min():g} to {chunk.max():g}; "
                "use scaling unit or minmax, or the loss mse"
            )
