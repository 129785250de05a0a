"""The typed configuration of a run: one definition for Python, the command line and the checkpoint."""

from __future__ import annotations

import functools
import inspect
import json
import math
import re
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, make_dataclass, replace
from typing import Annotated, Any, Literal

import torch
from torch.optim import Optimizer, lr_scheduler

from ..activations import ACTIVATIONS
from ..checks import check_nonnegative, check_share, check_whole
from ..corruption import Emphasis, parse_corruption
from ..distributed import Sharding
from ..losses import LossText
from ..nn.options import Options
from ..nn.stacked import layerwise_options
from ..objective import CODE_NOISES, Objective
from ..tensors import Products
from .data import Scaling
from .typed import typed_fields

POSITIONAL = "positional"
"""Marks fields that commands take without a name: ``run: Annotated[str, POSITIONAL]``. One that has a default
can be given by its name as well."""
_LONGEST_TIMEOUT = 366 * 86400.0

Precision = Literal["float32", "bfloat16", "float64"]

_MOST = 2**31 - 1  # of epochs, and of rows per step
_STEPS = 3000  # that a stage takes at least by default: a few epochs of small data teach nothing


@dataclass(frozen=True)
class Stage:
    """Settings of a stage of training.

    Attributes:
        epochs: Passes over the training rows. By default enough for 3000 steps, and at least 15 (30 for the
            classifier); fine-tuning takes as many as pretraining, or none where the stack has one layer.
        batch_size: Rows per step; 0 takes a fiftieth of the rows, at least 16 and at most 256.
        optimizer: A name in torch.optim, in any case.
        lr: Learning rate.
        optimizer_options: Further arguments of the optimizer, as name=value.
        schedule: A name in torch.optim.lr_scheduler, stepped at every step; "none" keeps the rate.
        schedule_options: Arguments of the schedule, as name=value; lengths in steps default to the stage's.
        clip_norm: Largest norm of the gradient; 0 does not clip.
        patience: Epochs to go on without a better validation loss; the stage then ends with its best
            parameters. 0 runs all epochs and keeps the last parameters.
    """

    epochs: int | None = None
    batch_size: int = 0
    optimizer: str = "adam"
    lr: float = 1e-3
    optimizer_options: tuple[str, ...] = ()
    schedule: str = "none"
    schedule_options: tuple[str, ...] = ()
    clip_norm: float = 0.0
    patience: int = 0

    def check(self, stage: str) -> None:
        """Refuse what makes no sense, before any data is read; ``ValueError`` names ``stage.field``."""
        for name in ("epochs", "batch_size", "patience"):
            if (getattr(self, name) or 0) < 0:
                raise ValueError(f"{stage}.{name}: must be a whole number >= 0, got {getattr(self, name)}")
            if (getattr(self, name) or 0) > _MOST:
                raise ValueError(f"{stage}.{name}: must be at most {_MOST}, got {getattr(self, name)}")
        for name in ("lr", "clip_norm"):
            check_nonnegative(f"{stage}.{name}:", getattr(self, name))
        try:
            parameter = torch.zeros(1, requires_grad=True)
            optimizer = self.make_optimizer([parameter])
            schedule = self.make_schedule(optimizer, 1000)
            for _ in range(3 if schedule is not None else 0):  # some options only fail when used
                optimizer.step()
                _call("schedule_options", schedule.step)  # pyright: ignore[reportOptionalMemberAccess]
        except ValueError as error:
            raise ValueError(f"{stage}.{error}") from None

    def rows_per_step(self, rows: int) -> int:
        """The batch size for a stage over ``rows`` rows."""
        return min(self.batch_size or min(256, max(16, rows // 50)), rows)

    def chosen_epochs(self, rows: int, least: int) -> int:
        """The epochs of a stage over ``rows`` rows; by default ``least``, or what makes 3000 steps."""
        if self.epochs is not None:
            return self.epochs
        return max(least, math.ceil(_STEPS / math.ceil(rows / self.rows_per_step(rows))))

    def make_optimizer(self, parameters: Sequence[torch.Tensor]) -> Optimizer:
        """Raises ``ValueError`` for an unknown name or an option that the optimizer does not take."""
        cls = _lookup(
            "optimizer", self.optimizer, torch.optim, Optimizer, exclude=("LBFGS", "SparseAdam", "Muon")
        )
        options = _options("optimizer_options", self.optimizer_options)
        mesh = getattr(parameters[0], "device_mesh", None)
        if "fused" in inspect.signature(cls).parameters and _can_be_fused(cls, parameters[0].device, mesh):
            options.setdefault("fused", True)
        return _call("optimizer_options", cls, parameters, lr=self.lr, **options)

    def make_schedule(self, optimizer: Optimizer, steps: int) -> lr_scheduler.LRScheduler | None:
        """A schedule over ``steps`` steps; ``ValueError`` for an unknown name or option."""
        if self.schedule.lower() == "none":
            return None
        cls = _lookup(
            "schedule",
            self.schedule,
            lr_scheduler,
            lr_scheduler.LRScheduler,
            exclude=(
                "LRScheduler",
                "ReduceLROnPlateau",
                "LambdaLR",
                "MultiplicativeLR",
                "SequentialLR",
                "ChainedScheduler",
            ),
        )
        options = _options("schedule_options", self.schedule_options)
        lengths = {"T_max": steps, "total_steps": steps, "total_iters": steps, "max_lr": self.lr}
        known = inspect.signature(cls).parameters
        options = {**{name: value for name, value in lengths.items() if name in known}, **options}
        return _call("schedule_options", cls, optimizer, **options)


@dataclass(frozen=True)
class _DataConfig:
    """Data and widths.

    Attributes:
        data: A data set (digits, mnist, fashion-mnist), a file or a folder.
        test: File of a test part, where the data has none.
        label: Column with the labels. Several columns are read as one-hot labels, the word none leaves labels
            out. By default a column named label, target, class or y. In an archive, the name of an array.
        labels: File with the labels, where the data has none.
        drop: Columns of a table to leave out.
        test_fraction: Share of the rows to hold out as the test part; for data without one.
        scaling: Scaling of the features, fitted on the training part; auto is none for losses of counts,
            minmax, per column, for tables whose columns differ in range, and one range for all values
            otherwise.
        hidden: Units of each layer, the code's last. By default 512 256.
        sizes: In place of hidden: the width of the input and the units of each layer, as in 784 512 256.
    """

    data: Annotated[str, POSITIONAL] = "digits"
    test: str | None = None
    label: tuple[str, ...] = ()
    labels: str | None = None
    drop: tuple[str, ...] = ()
    test_fraction: float = 0.0
    scaling: Scaling = "auto"
    hidden: tuple[int, ...] = ()
    sizes: tuple[int, ...] = ()


_CHOICES: dict[str, Collection[str]] = {
    "activation": ACTIVATIONS,
    "output_activation": ACTIVATIONS,
    "code_noise": CODE_NOISES,
}

LAYER_TYPES: dict[str, Any] = {
    name: Literal[tuple(_CHOICES[name])] if name in _CHOICES else LossText if name == "loss" else type(value)
    for name, value in Options().to_dict().items()
    if name != "emphasis"
}
"""Types of the options of a layer, as JSON and the command line hold them."""


def _layer_config() -> type:
    """A dataclass of the options of layers, each as one value for all layers or one value per layer."""
    defaults = Options().to_dict()
    options: list[Any] = [
        (f.name, tuple[LAYER_TYPES[f.name], ...], (defaults[f.name],))
        if f.name in LAYER_TYPES
        else (f.name, tuple[float, float] | None, None)
        for f in fields(Options)
    ]
    made = make_dataclass("_LayerConfig", options, bases=(_DataConfig,), frozen=True)
    made.__module__ = __name__
    docs = {**attribute_docs(Objective), **attribute_docs(Options)}
    docs["emphasis"] += " As in 1 0.5, for every layer with a corruption."
    docs["corruption"] += " As in masking:0.25, gaussian:0.1, salt_and_pepper:0.1, swap:0.15, or none."
    lines = [f"    {name}: {docs[name]}" for name, *_ in options]
    made.__doc__ = "\n".join(["Layers; one value for all, or one per layer.", "", "Attributes:", *lines])
    return made


def attribute_docs(cls: type) -> dict[str, str]:
    """The texts on a class's attributes in its docstring, one line each."""
    section = (inspect.getdoc(cls) or "").partition("Attributes:\n")[2].partition("\n\n")[0]
    texts = re.split(r"^ {4}(\w+): ", section, flags=re.MULTILINE)[1:]
    plain = [re.sub(r"``|:\w+:`~?([^`]*)`", r"\1", " ".join(text.split())) for text in texts[1::2]]
    return {name: text[0].upper() + text[1:] for name, text in zip(texts[::2], plain, strict=True)}


@dataclass(frozen=True)
class TrainConfig(_layer_config()):
    """The configuration of a training run. Options of layers take one value, or one value per layer.

    Attributes:
        probes: Random probes per row for the contractive penalty of a whole stack.
        pretrain: Greedy training of each layer on the clean codes of those below.
        finetune: Training of the unrolled deep autoencoder as a whole; 0 epochs leave it out.
        classifier: Train a classifier on top in the end, with labels.
        supervised: Training of the classifier, all layers together.
        supervised_dropout: Share of every code dropped while the classifier is trained.
        supervised_input_dropout: Share of the input's entries dropped while the classifier is trained.
        validation: Share of the training rows held out for validation.
        precision: Precision of the computation; bfloat16 is mixed, with float32 parameters.
        products: Precision of float32 products, as in torch.set_float32_matmul_precision: medium takes
            bfloat16 on a CPU that multiplies it, high and medium take TF32 on a GPU that has it. By default
            the setting of the process.
        device: Device of torch; auto takes an accelerator where there is one.
        graph: Capture the training step as a CUDA graph, where the device has them.
        compile: Compile the training step by torch.compile, in one process; on a CPU this needs a C++
            compiler.
        seed: Seed of initialisation, order and noise.
        out: Folder of the run. By default runs/<data>, or the first runs/<data>-<number> that is free.
        resume: Continue the run in out, from its last checkpoint. It keeps its own configuration,
            but for device, memory_gib, checkpoint_seconds, more epochs of a stage, and a classifier.
        checkpoint_seconds: Longest time between two checkpoints.
        timeout: Seconds that one of several processes may keep the others waiting before the run ends.
        memory_gib: Memory for data and cached codes. By default half of what is free.
        window_mib: Stored values of a window that rows are shuffled in, where two windows are in memory; 0
            shuffles all rows. By default 256, or a third of memory_gib where that is less, for a folder of
            shards, and 0 otherwise.
        shard: What several processes split besides the rows of a batch: data nothing else, weights the
            parameters, gradients and optimizer state of every layer (FSDP2), units the units of every layer.
            By default data, or as the run that is continued.
        shard_size: Processes that hold one copy of the parameters together, where these are split; 0 takes
            all.
        tensorboard: Write TensorBoard's event files.
    """

    probes: int = 1
    pretrain: Stage = field(default_factory=Stage)
    finetune: Stage = field(default_factory=Stage)
    classifier: bool = False
    supervised: Stage = field(default_factory=lambda: Stage(lr=3e-3, schedule="CosineAnnealingLR"))
    supervised_dropout: float = 0.5
    supervised_input_dropout: float = 0.0
    validation: float = 0.1
    precision: Precision = "float32"
    products: Products | None = None
    device: str = "auto"
    graph: bool = True
    compile: bool = False
    seed: int = 0
    out: str | None = None
    resume: bool = False
    checkpoint_seconds: float = 30.0
    timeout: float = 600.0
    memory_gib: float | None = None
    window_mib: float | None = None
    shard: Sharding | None = None
    shard_size: int = 0
    tensorboard: bool = True

    def __post_init__(self) -> None:
        given = {f.name: getattr(self, f.name) for f in fields(self)}
        for name, value in typed_fields(type(self), given).items():
            object.__setattr__(self, name, value)
        if self.hidden and min(self.hidden) < 1:
            raise ValueError(f"hidden: expected widths of at least 1, got {list(self.hidden)}")
        if self.hidden and self.sizes:
            raise ValueError(
                f"hidden: expected either hidden or sizes, got both, {list(self.hidden)} and "
                f"{list(self.sizes)}"
            )
        if self.sizes and (len(self.sizes) < 2 or min(self.sizes) < 1):
            raise ValueError(
                f"sizes: needs the input's width and at least one code's, got {list(self.sizes)}"
            )
        check_share("test_fraction:", self.test_fraction)
        check_share("validation:", self.validation)
        check_share("supervised_dropout:", self.supervised_dropout)
        check_share("supervised_input_dropout:", self.supervised_input_dropout)
        if not self.checkpoint_seconds >= 0.0:
            raise ValueError(f"checkpoint_seconds: must be >= 0, got {self.checkpoint_seconds!r}")
        if not 0.0 < self.timeout <= _LONGEST_TIMEOUT:
            raise ValueError(f"timeout: expected seconds above 0 and at most a year, got {self.timeout!r}")
        if self.memory_gib is not None:
            check_nonnegative("memory_gib:", self.memory_gib)
        if self.window_mib is not None:
            check_nonnegative("window_mib:", self.window_mib)
            if self.memory_gib and 2 * self.window_mib > 1024 * self.memory_gib:
                raise ValueError(
                    f"window_mib: two windows of {self.window_mib:g} MiB do not fit in memory_gib"
                    f" {self.memory_gib:g}"
                )
        check_whole("shard_size:", self.shard_size, 0)
        if self.resume and self.out is None:
            raise ValueError("resume: needs out, the folder of the run to continue")
        if not -(2**63) <= self.seed < 2**63:
            raise ValueError(f"seed: must fit 64 bits, got {self.seed!r}")
        for name, stage in self.stages.items():
            stage.check(name)
            if stage.patience and not self.validation:
                raise ValueError(f"{name}.patience: needs a validation share above 0")
        for text in self.corruption:
            parse_corruption(text)
        if self.sizes or self.hidden:
            self.layer_options(len(self.hidden or self.sizes[1:]))

    @property
    def stages(self) -> dict[str, Stage]:
        """The stages by the names of their options, in the order in which they run."""
        return {"pretrain": self.pretrain, "finetune": self.finetune, "supervised": self.supervised}

    def sizes_for(self, width: int) -> tuple[int, ...]:
        """The widths of rows of ``width`` and of each code."""
        return self.sizes or (width, *(self.hidden or (512, 256)))

    def with_epochs(self, rows: int, layers: int) -> TrainConfig:
        """The configuration with the epochs of every stage chosen, for a number of rows and of layers."""
        pretrain = self.pretrain.chosen_epochs(rows, 15)
        finetune = self.finetune.epochs
        if finetune is None:
            finetune = pretrain if layers > 1 else 0
        return replace(
            self,
            pretrain=replace(self.pretrain, epochs=pretrain),
            finetune=replace(self.finetune, epochs=finetune),
            supervised=replace(self.supervised, epochs=self.supervised.chosen_epochs(rows, 30)),
        )

    def layer_options(self, depth: int) -> list[Options]:
        """The options of each of ``depth`` layers; ``ValueError`` where they do not fit."""
        changes: dict[str, Any] = {}
        for name in LAYER_TYPES:
            values = getattr(self, name)
            changes[name] = values[0] if len(values) == 1 else list(values)
        corruptions = self.corruption if len(self.corruption) > 1 else self.corruption * depth
        if self.emphasis is not None:
            emphasis = Emphasis(*self.emphasis)
            # a layer without corruption has nothing to emphasise
            changes["emphasis"] = [None if text == "none" else emphasis for text in corruptions]
        return layerwise_options(depth, None, changes)

    def to_dict(self) -> dict[str, Any]:
        """The value as JSON can hold it."""
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainConfig:
        """The inverse of :meth:`to_dict`; ``ValueError`` names what does not fit."""
        return cls(**typed_fields(cls, values))


def differing(
    options: Mapping[str, Any],
    own: Mapping[str, Any],
    defaults: Mapping[str, Any],
    given: Collection[str] | None,
) -> list[str]:
    """Names of the options given to a resumed run that are not those of the run itself.

    ``given`` are the names that were given; ``None`` where only values tell, by differing from the defaults.
    """
    return [
        name
        for name, value in options.items()
        if value != own[name] and (value != defaults[name] if given is None else name in given)
    ]


def warn_of_kept(names: Sequence[str], stacklevel: int) -> None:
    """Warn that a resumed run keeps its own values of the options called ``names``."""
    if names:
        warnings.warn(f"resume: the run keeps its own {', '.join(names)}", stacklevel=stacklevel + 1)


@functools.cache
def _can_be_fused(cls: type[Optimizer], device: torch.device, mesh: Any) -> bool:
    """True if an optimizer updates all parameters on a device by one kernel, found out by trying it.

    With a mesh, processes hold parts of the parameters.
    """
    parameter = torch.zeros(1, device=device)
    if mesh is not None:
        from torch.distributed.tensor import zeros

        parameter = zeros(1, device_mesh=mesh)
    parameter.requires_grad_().grad = torch.zeros_like(parameter)
    try:
        cls([parameter], fused=True).step()  # pyright: ignore[reportCallIssue]
    except (RuntimeError, TypeError):  # torch 2.11 has no fused Adagrad on CUDA
        return False
    return True


def _lookup(argument: str, name: str, module: Any, base: type, exclude: tuple[str, ...]) -> Any:
    known = {
        key.lower(): value
        for key, value in vars(module).items()
        if inspect.isclass(value)
        and issubclass(value, base)
        and value is not base
        and not key.startswith("_")
        and key not in exclude
    }
    if name.lower() not in known:
        names = ", ".join(sorted(value.__name__ for value in known.values()))
        raise ValueError(f"{argument}: {name!r} is not one of {names}")
    return known[name.lower()]


def _options(argument: str, texts: tuple[str, ...]) -> dict[str, Any]:
    """{"momentum": 0.9} from ("momentum=0.9",); values are JSON or plain text."""
    options: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise ValueError(f"{argument}: expected name=value, got {text!r}")
        if name in ("lr", "params", "optimizer"):
            raise ValueError(f"{argument}: {name} is not to be given here")
        try:
            options[name] = json.loads(value)
        except json.JSONDecodeError:
            options[name] = value
    return options


def _call(argument: str, function: Callable[..., Any], /, *args: Any, **options: Any) -> Any:
    try:
        return function(*args, **options)
    except (TypeError, ValueError, RuntimeError, LookupError, ArithmeticError, AttributeError) as error:
        raise ValueError(f"{argument}: {error}") from None
