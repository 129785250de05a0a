"""The training engine: greedy pretraining, fine-tuning of the whole, a classifier on top; resumable exactly.

The noise of a step is a function of (seed, stage, step), the order of an epoch one of (seed, stage, epoch).
A run that continues from a checkpoint therefore repeats the losses of one that was never stopped.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .._version import __version__
from ..distributed import World, joined, make_mesh, shard_units, silenced
from ..distributed.mesh import PARTS
from ..errors import CheckpointError, TrainingError
from ..interruption import Interrupted, Interruption
from ..losses import get_loss
from ..nn import StackedAutoencoder
from ..tensors import float32_products, float32_products_of, is_finite, local
from .batches import Resident, Streamed, free_memory, open_rows
from .checkpoint import (
    Checkpoint,
    TrainState,
    clean_run,
    load_checkpoint,
    save_checkpoint,
)
from .config import TrainConfig
from .data import Dataset, Rows, load_dataset, split
from .data.parts import is_stored
from .data.rows import chosen_window
from .evaluation import Parts, evaluation_parts
from .folder import (
    check_new,
    check_run,
    locked,
    make_folder,
    mark_launch,
)
from .models import new_classifier, new_stack, settle
from .preflight import check_entrywise, check_optimizers, check_schedules, check_values
from .reporting import Log, Progress, Silent
from .resumption import flat, of_launch, resumed
from .stage import Plan, Session, StageRunner, cross_entropy, objective
from .state import RunState
from .writing import BackgroundWriter

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

_FINE_TUNING, _CLASSIFIER = "fine-tuning", "classifier"
_SETTLING = 2.0  # seconds in which a launcher may send a process the signal that a terminal has sent


@dataclass
class TrainResult:
    """A finished run: folder, data, one log row per epoch, its configuration, and the trained modules.

    Modules that processes held parts of are read from the run's last checkpoint when they are asked for.
    """

    path: Path
    dataset: Dataset
    history: list[dict[str, Any]] = field(default_factory=list)
    config: TrainConfig | None = None
    modules: tuple[StackedAutoencoder, nn.Sequential | None] | None = field(default=None, repr=False)

    @property
    def stack(self) -> StackedAutoencoder:
        """The autoencoders."""
        return self._modules[0]

    @property
    def classifier(self) -> nn.Sequential | None:
        """The classifier on top, if there is one."""
        return self._modules[1]

    @property
    def _modules(self) -> tuple[StackedAutoencoder, nn.Sequential | None]:
        if self.modules is None:
            checkpoint = load_checkpoint(self.path)
            for module in (checkpoint.stack, checkpoint.classifier):
                if module is not None:
                    module.eval()
            self.modules = checkpoint.stack, checkpoint.classifier
        return self.modules

    @property
    def parts(self) -> Parts:
        """The rows to evaluate the run on."""
        config = self.config or TrainConfig(validation=0.0)
        return evaluation_parts(self.dataset, config.validation, config.seed)


def train(
    config: TrainConfig,
    *,
    dataset: Dataset | None = None,
    progress: Progress | None = None,
    announce: Callable[[str], None] | None = None,
    given: Collection[str] | None = None,
) -> TrainResult:
    """Train a stack as ``config`` says and return it; everything is also in the run's folder.

    Args:
        config: the run. With ``resume``, the checkpoint's own configuration holds, except for ``out``,
            ``device``, ``memory_gib`` and ``checkpoint_seconds``, more epochs for a stage, and a classifier.
            Other options that were given and differ from the run's own are named in a warning.
        dataset: in place of ``config.data``, which becomes its name.
        progress: what to show; nothing by default.
        announce: called before training starts with a line on the data and the device, and, with ``resume``,
            one on where the run goes on.
        given: names of the options that were given, as ``seed`` or ``pretrain.lr``; by default those that
            differ from their defaults.

    Raises:
        ValueError, DataError, CheckpointError: a wrong argument, file or folder, before training starts.
        TrainingError: the loss stopped being finite.
        Interrupted: a KeyboardInterrupt, after Ctrl-C, SIGTERM or SIGHUP, with the current step finished and
            a checkpoint written.
    """
    with ExitStack() as held:
        world = held.enter_context(joined(config.device, config.timeout))
        held.enter_context(_speaking_for(world))
        folder = checkpoint = None
        config = world.first(partial(of_launch, config))
        if config.resume:
            folder = world.first(partial(_hold, config, held))
            with world.agreed():
                config = resumed(config, folder, given)
        else:
            world.first(partial(check_new, config.out))
        with world.agreed():
            mesh, units = make_mesh(world, config.shard or "data", config.shard_size), None
            if mesh is not None and config.shard == "units":
                mesh, units = None, mesh  # layers are made and read whole, on the host
                world.share_rows(units)
        with world.agreed():
            if folder is not None:
                place = "cpu" if mesh is None else world.device
                checkpoint = load_checkpoint(folder, device=place, with_state=True, mesh=mesh)
        if dataset is None:
            dataset = _load(config, checkpoint, world)
        else:
            config = replace(
                config, data=dataset.name, test=None, label=(), labels=None, drop=(), test_fraction=0.0
            )
        devices = range(torch.cuda.device_count()) if not world.grouped else [world.device.index or 0]
        held.enter_context(torch.random.fork_rng(devices=devices if torch.cuda.is_available() else []))
        if config.products is not None:
            held.enter_context(float32_products_of(config.products))
        free = min(world.gather(_budget(world)))
        display = progress if progress is not None and world.leads else Silent()
        with world.agreed():
            run = _Run(config, dataset, checkpoint, display, world, free, mesh, units)
        world.check_same(version=__version__, options=flat(run.config), data=run.session.state.data)
        if checkpoint is None:
            run.session.folder = world.first(partial(_hold, config, held, dataset.name))
        if announce is not None and world.leads:
            read = "" if checkpoint is None or not dataset.paths else f", read from {dataset.origin}"
            where = run.session.device if not world.grouped else f"{world.size} processes"
            announce(f"{dataset.describe()}{read}; on {where}")
            if checkpoint is not None:
                announce(run.position())
        return run.train()


@contextmanager
def _speaking_for(world: World) -> Iterator[None]:
    """Errors that all processes come to alike are reported by the first one."""
    try:
        yield
    except (TrainingError, Interrupted) as error:
        silenced(error, elsewhere=not world.leads)
        raise


def _hold(config: TrainConfig, held: ExitStack, name: str | None = None) -> Path:
    """The folder of a run, made for a new one of data ``name``, locked as long as ``held``."""
    if name is None:
        assert config.out is not None
        check_run(config.out)
        folder = Path(config.out)
    else:
        folder = make_folder(config.out, name)
    held.enter_context(locked(folder))
    if name is not None:
        check_new(str(folder))  # another process may have been faster
        mark_launch(folder)
    return folder


def _budget(world: World) -> int:
    """Bytes that a process's data and cached codes may take by default: half of what is free to it."""
    free = free_memory(world.device) // 2
    return free if world.device.type == "cuda" else free // world.local_size


def _load(config: TrainConfig, checkpoint: Checkpoint | None, world: World) -> Dataset:
    """The data of a run, on the first process before the others: it may have to be fetched."""
    dataset = None
    for turn in (world.leads, not world.leads):
        with world.agreed():
            if turn:
                dataset = _load_data(config) if checkpoint is None else checkpoint.load_data()
    assert dataset is not None
    return dataset


def _load_data(config: TrainConfig) -> Dataset:
    scaled = config.scaling != "auto" or not get_loss(config.loss[0]).of_counts
    return load_dataset(
        config.data,
        test=config.test,
        scaling=config.scaling if scaled else "none",
        label=config.label,
        labels=config.labels,
        drop=config.drop,
        test_fraction=config.test_fraction,
        seed=config.seed,
        missing=config.missing[0],
    )


class _Run:
    """A run from its checks to its last checkpoint.

    ``mesh`` is the grid of processes that hold parts of every parameter, ``units`` of those that hold some
    units of every layer; ``None`` where there is no such grid.
    """

    def __init__(
        self,
        config: TrainConfig,
        dataset: Dataset,
        checkpoint: Checkpoint | None,
        display: Progress,
        world: World,
        budget: int,
        mesh: DeviceMesh | None,
        units: DeviceMesh | None,
    ) -> None:
        config = replace(config, products=config.products or float32_products(world.device.type))
        if config.compile and world.grouped:
            raise ValueError(f"compile: expected one process, got {world.size}")
        self.mesh, self.units = mesh, units
        self.in_parts = mesh is not None or units is not None
        if mesh is not None:
            check_optimizers(config, mesh)
        if units is not None:
            check_entrywise(config)
        self.rows, self.validation = _split(config, dataset)
        sizes = config.sizes_for(dataset.width)
        config = config.with_epochs(len(self.rows), len(sizes) - 1)
        if is_stored(dataset.train.array):  # kept in the checkpoint: other memory later changes no order
            config = replace(config, window_mib=chosen_window(config.window_mib, config.memory_gib))
        self.config = config
        self.dataset, self.sizes = dataset, sizes
        if config.classifier:
            dataset.check_classes()
        check_schedules(config, len(self.rows))
        self.restored: TrainState | None = None
        self.runner: StageRunner | None = None
        self.writer = BackgroundWriter(world)
        if checkpoint is None:
            state = RunState(data=dataset.train.fingerprint(), budget=budget)
        else:
            state = self._check_state(checkpoint)
        self.session = Session(
            config,
            Path(config.out or "."),
            world,
            state,
            display,
            Interruption(_SETTLING if world.grouped else 0.0),
            save=self._save,
            saved=checkpoint is not None,
            saved_at=time.monotonic(),
        )
        if checkpoint is None:
            self.stack = self._new_stack()
            self.classifier = None
        else:
            self.stack, self.classifier = checkpoint.stack, checkpoint.classifier
        if units is not None:
            self._spread(units)
        self.stack.to(world.device)
        # what is cached must not change when a run goes on, or its rounding would
        self.budget = state.budget if config.memory_gib is None else int(config.memory_gib * 2**30)

    def _spread(self, units: DeviceMesh) -> None:
        """Keep this process's units of the modules."""
        for module in (self.stack, self.classifier):
            if module is not None:
                try:
                    shard_units(module, units.get_group(PARTS))
                except ValueError as error:
                    raise ValueError(f"shard: {error}") from None

    def _new_stack(self) -> StackedAutoencoder:
        config, dataset, session, sizes = self.config, self.dataset, self.session, self.sizes
        if sizes[0] != dataset.width:
            raise ValueError(
                f"sizes: the first is {sizes[0]}, but {dataset.name} has rows of {dataset.width}"
            )
        options = config.layer_options(len(sizes) - 1)
        check_values(dataset, options[0])
        session.seed(-1)
        return new_stack(sizes, options, config.probes, session.dtype, session.device, self.mesh)

    def _check_state(self, checkpoint: Checkpoint) -> RunState:
        """The state that a checkpoint holds; ``CheckpointError`` where it does not fit."""
        values, dataset = checkpoint.state.values, self.dataset
        within_stage = "optimizer" in values
        before = _epochs_by_stage(TrainConfig.from_dict(checkpoint.config), checkpoint.stack)
        now = _epochs_by_stage(self.config, checkpoint.stack)
        try:
            state = RunState.from_json(values, within_stage=within_stage)
            ended = len(before) if state.finished else state.stage
            if ended > len(before) or (within_stage and ended == len(before)):
                raise ValueError(f"stage: {state.stage} is beyond the run's {len(before)} stages")
        except ValueError as error:
            raise CheckpointError(f"{checkpoint.path / 'state.json'}: {error}") from error
        if checkpoint.stack.sizes[0] != dataset.width or not dataset.train.matches(state.data):
            change = dataset.train.difference(state.data)
            raise CheckpointError(
                f"{checkpoint.path.parent}: was trained on other data than {dataset.name} is now "
                f"({len(dataset.train)} rows of {dataset.width}){f': {change}' if change else ''}"
            )
        if "done" not in values:  # written before stages could be trained further
            state.done = dict(list(before.items())[:ended])
        if ended < len(before):  # more stages may be asked for now
            state.stage = list(now).index(list(before)[ended])
        if within_stage:
            self.restored, self.restored_from = checkpoint.state, checkpoint.path
        return state

    # --- stages -----------------------------------------------------------------------------------------

    def train(self) -> TrainResult:
        session, state = self.session, self.session.state
        if self.mesh is not None:
            settle(self.stack)
        if self._next_stage() is not None or not state.finished:
            state.finished = False
            log = None
            with self._writing_log():
                if session.world.leads:
                    clean_run(session.folder)
                    log = Log(session.folder, state.history, self.config.tensorboard)
            try:
                with session.interruption, self.writer, session.display:
                    while (number := self._next_stage()) is not None:
                        self._run_stage(number, log)
                    state.finished = True
                    self._save()
            finally:
                if log is not None:
                    log.close()
        if self.classifier is not None:
            self.classifier.eval()
        modules = None if self.in_parts else (self.stack.eval(), self.classifier)
        return TrainResult(session.folder, self.dataset, state.history, self.config, modules)

    def position(self) -> str:
        """Where a run stands, in words."""
        state, number = self.session.state, self._next_stage()
        folder = self.session.folder
        if number is None:
            return f"{folder} is finished; with more epochs, as in --epochs 100, it is trained further"
        name = list(_epochs_by_stage(self.config, self.stack))[number]
        trained = max((row["epoch"] for row in state.history if row["stage"] == name), default=0)
        further = "is finished and trained further:" if state.finished else "goes on:"
        return f"{folder} {further} {name} from epoch {trained + 1}"

    def _next_stage(self) -> int | None:
        """The current stage or, once all have had their turn, the first that is to be trained further."""
        state, stages = self.session.state, _epochs_by_stage(self.config, self.stack)
        pending = [n for n, (name, epochs) in enumerate(stages.items()) if state.done.get(name, 0) < epochs]
        return next((n for n in pending if n >= state.stage), pending[0] if pending else None)

    def _plan(self, number: int) -> Plan:
        """A stage's plan, made when its turn comes from what was trained before."""
        config = self.config
        name, epochs = list(_epochs_by_stage(config, self.stack).items())[number]
        if name == _FINE_TUNING:
            least = get_loss(self.stack.input_options.loss).least
            return Plan(
                name, "finetune", config.finetune, epochs, self.stack, objective(self.stack), least=least
            )
        if name == _CLASSIFIER:
            module = self._own_classifier()
            loss, stage = cross_entropy(module), config.supervised
            return Plan(name, "supervised", stage, epochs, module, loss, noisy_validation=False)
        layer = self.stack.autoencoders[number]
        least, stage = get_loss(layer.options.loss).least, config.pretrain
        return Plan(name, "pretrain", stage, epochs, layer, objective(layer), depth=number, least=least)

    def _own_classifier(self) -> nn.Sequential:
        """A classifier with encoders of its own, so that the stack stays as it is."""
        config, classes = self.config, self.dataset.num_classes
        assert classes is not None
        classifier = new_classifier(
            self.stack, classes, config.supervised_dropout, config.supervised_input_dropout, self.mesh
        )
        if self.classifier is not None:
            classifier.load_state_dict(self.classifier.state_dict())
        self.classifier = classifier
        return classifier

    def _run_stage(self, number: int, log: Log | None) -> None:
        session, state, plan = self.session, self.session.state, self._plan(number)
        runner = StageRunner(session, number, plan, *self._open(plan.depth))
        if self.restored is None:
            state.begin_stage(number, plan.name)
        else:
            self._restore(runner, self.restored)
            self.restored = None
        self.runner = runner
        for row in runner.epochs():
            with self._writing_log():
                if log is not None:
                    log.write(row)
        self.runner = None
        state.end_stage(plan.name, plan.epochs)
        if session.world.gather(session.checkpoint_is_due)[0]:
            self._save()

    @contextmanager
    def _writing_log(self) -> Iterator[None]:
        """Errors of a full disk as one that names the file, in all processes."""
        with self.session.world.agreed():
            try:
                yield
            except OSError as error:
                folder = self.session.folder
                kept = "checkpoints are intact" if self.session.saved else "there is no checkpoint yet"
                raise CheckpointError(
                    f"{folder}: could not write log.csv ({error.strerror or error}); {kept}"
                ) from error

    def _restore(self, runner: StageRunner, saved: TrainState) -> None:
        try:
            runner.restore(saved.values["optimizer"], saved.tensors)
        except ValueError as error:
            raise CheckpointError(f"{self.restored_from}{os.sep}{error}") from error

    def _open(self, depth: int) -> tuple[Resident | Streamed, Resident | Streamed | None]:
        """Training and validation rows of a stage, as clean codes of the ``depth`` layers below."""
        session, stack = self.session, self.stack.eval()

        @torch.no_grad()
        def encode(x: Tensor) -> Tensor:
            with session.autocast():
                return stack.encode(x, depth).to(session.dtype)

        def open_part(rows: Rows) -> Resident | Streamed:
            below = encode if depth else None
            return open_rows(
                rows,
                session.device,
                session.dtype,
                self.budget,
                below,
                stack.sizes[depth],
                self.config.window_mib,
            )

        # first, as they are the first rows of data that can only be read in order
        validation = open_part(self.validation) if len(self.validation) else None
        return open_part(self.rows), validation

    def _save(self) -> None:
        session, runner = self.session, self.runner
        modules = [self.stack] if self.classifier is None else [self.stack, self.classifier]
        parameters = (local(p) for module in modules for p in module.parameters())
        if not all(session.world.gather(all(map(is_finite, parameters)))):
            raise session.failure("the parameters are not finite after", session.state.step)
        session.saved, session.saved_at = True, time.monotonic()
        values, tensors = session.state.to_json(), ()
        if runner is not None:
            values["optimizer"], tensors = runner.saved()
        config = {**self.config.to_dict(), "resume": False}
        run, stack, classifier = session.folder, self.stack, self.classifier
        with session.world.agreed():
            save_checkpoint(self.writer, run, stack, classifier, self.dataset, config, values, tensors)


def _epochs_by_stage(config: TrainConfig, stack: StackedAutoencoder) -> dict[str, int]:
    """The stages of a run in order, each with its epochs; those without any are left out."""
    epochs = {f"layer {number}": config.pretrain.epochs or 0 for number in range(1, len(stack.layers) + 1)}
    epochs[_FINE_TUNING] = config.finetune.epochs or 0
    epochs[_CLASSIFIER] = (config.supervised.epochs or 0) if config.classifier else 0
    return {name: count for name, count in epochs.items() if count}


def _split(config: TrainConfig, dataset: Dataset) -> tuple[Rows, Rows]:
    try:
        return split(dataset.train, config.validation, config.seed)
    except ValueError as error:
        raise ValueError(f"validation: {error}") from None
