"""Training of a dictionary on a data set, by one configuration for Python, commands and run folders."""

from __future__ import annotations

import copy
import csv
import io
import json
import time
from collections.abc import Callable, Collection, Iterable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .. import formats
from .._version import __version__
from ..checks import check_name, check_nonnegative, check_whole
from ..devices import resolve_device
from ..errors import CheckpointError
from ..files import check_writable, remove_leftovers, write_whole
from ..interruption import Interrupted, Interruption
from ..optim import DictionaryAdam, constrain
from ..sparse.module import SparseAutoencoder
from ..sparse.planted import Planted, planted_rows, recovered_share
from ..sparse.specs import AuxK, BatchTopK, Gated, Matryoshka, TopK
from .batches import Resident, Source, free_memory, open_rows
from .config import differing, warn_of_kept
from .data import Dataset, Rows, load_dataset, split
from .data.parts import is_stored
from .data.rows import chosen_window
from .data.scaling import AffineScaling
from .dictionary_state import Position, read_config, restore_state, save_state
from .folder import DICTIONARY_RUN, DICTIONARY_STATE, has_checkpoint, locked
from .seeds import mix
from .step import TrainingStep
from .typed import typed_fields
from .writing import BackgroundWriter

_WARM_UP, _DECAY = 0.05, 0.2
_CHUNK = 4096
_HELD_OUT = 0.1
_SAMPLE = 1 << 15  # rows that a dictionary starts from
_FREE = ("out", "resume", "device", "memory_gib", "checkpoint_seconds")  # options of a resumed run

OPTIMIZERS: dict[str, Callable[[SparseAutoencoder, float], torch.optim.Optimizer]] = {
    "adam": lambda sae, lr: constrain(torch.optim.Adam(sae.parameters(), lr=lr), sae),
    "dictionary_adam": DictionaryAdam,
}


@dataclass(frozen=True)
class SparseTrainConfig:
    """Train a dictionary of sparse codes on the rows of a data set.

    Attributes:
        data: A data set, a file or a folder, as for fastae train; or planted, rows made of known directions.
        out: Folder of the run.
        latents: Number of latents.
        activation: Activation of the code: topk:K, batch_topk:K, jump_relu, relu or gated.
        auxk: Weight of the loss that revives dead latents; 0 for none.
        dead_after: Silent rows after which a latent is dead.
        prefixes: Widths of nested dictionaries (Matryoshka), rising to the latents.
        l1: Weight of the sum of codes (relu, gated).
        l0: Weight of the number of active latents.
        l0_target: Number of active latents that l0 aims at.
        normalization: Normalisation of each row: none, layer_norm or norm.
        scaling: Scaling of features, as for fastae train.
        epochs: Passes over the rows.
        batch_size: Rows per step.
        optimizer: Adam, or dictionary_adam, which saves memory.
        lr: Peak learning rate. By default 2e-4 / sqrt(latents / 16384), at most 2e-3.
        seed: Seed of weights, order and planted rows.
        device: Device of torch; auto takes an accelerator where there is one.
        memory_gib: Memory for data; by default half of what is free.
        window_mib: Window that shards are shuffled in, as for fastae train.
        resume: Continue the run in out where it was saved last, with its options.
        checkpoint_seconds: Seconds between saves.
    """

    data: str = "planted"
    out: str = "runs/sae"
    latents: int = 1024
    activation: str = "topk:16"
    auxk: float = 1 / 32
    dead_after: int = 20_000
    prefixes: tuple[int, ...] = ()
    l1: float = 0.0
    l0: float = 0.0
    l0_target: float | None = None
    normalization: str = "none"
    scaling: str = "auto"
    epochs: int = 20
    batch_size: int = 256
    optimizer: str = "adam"
    lr: float | None = None
    seed: int = 0
    device: str = "auto"
    memory_gib: float | None = None
    window_mib: float | None = None
    resume: bool = False
    checkpoint_seconds: float = 60.0

    def __post_init__(self) -> None:
        for name in ("latents", "epochs", "batch_size", "dead_after"):
            check_whole(f"{name}:", getattr(self, name))
        check_name("optimizer", self.optimizer, OPTIMIZERS)
        for name in ("auxk", "l1", "l0", "checkpoint_seconds"):
            check_nonnegative(f"{name}:", getattr(self, name))
        for name in ("lr", "memory_gib", "window_mib"):
            if getattr(self, name) is not None:
                check_nonnegative(f"{name}:", getattr(self, name))
        object.__setattr__(self, "prefixes", tuple(self.prefixes))

    @property
    def rate(self) -> float:
        """The peak learning rate (Gao et al. 2024, A.3)."""
        return min(2e-4 / (self.latents / 2**14) ** 0.5, 2e-3) if self.lr is None else self.lr

    def module(self, width: int) -> SparseAutoencoder:
        """The module for rows of a width.

        Raises:
            ValueError: an option that does not fit the others, named.
        """
        return SparseAutoencoder(
            width,
            self.latents,
            self.activation,
            auxk=AuxK(self.auxk, dead_after=self.dead_after) if self.auxk else None,
            matryoshka=Matryoshka(self.prefixes) if self.prefixes else None,
            l1=self.l1,
            l0=self.l0,
            l0_target=self.l0_target,
            normalization=self.normalization,
        )


class SparseRun(NamedTuple):
    """A trained dictionary, how its data were scaled, and its figures on rows that it was not trained on."""

    sae: SparseAutoencoder
    scaling: AffineScaling | None
    config: SparseTrainConfig
    figures: dict[str, Any]
    path: Path


class _Data(NamedTuple):
    """What to train on, rows from all over it, and batches held out."""

    source: Source
    width: int
    sample: Tensor
    held_out: Iterable[Tensor]
    rows: Rows | None = None  # of a data set
    scaling: AffineScaling | None = None
    directions: Tensor | None = None


def train(
    config: SparseTrainConfig,
    progress: Callable[[int, dict[str, float]], None] | None = None,
    *,
    dataset: Dataset | None = None,
    given: Collection[str] | None = None,
) -> SparseRun:
    """Train a dictionary, measure it on rows held out, and write its folder.

    The folder has fastae's format of a sparse autoencoder, train.json (configuration, scaling and figures)
    and log.csv (the terms of the loss per epoch). Until then it has the state of training: a run that was
    killed and is resumed ends with the same weights, bit for bit on the same machine.

    Args:
        config: what to train on, and how.
        progress: called after each epoch with its number, from 1, and the terms of the loss.
        dataset: in place of ``config.data``.
        given: names of the options that were given to a resumed run, which warns of those that it does not
            take; by default those that differ from their defaults.

    Raises:
        ValueError, DataError, CheckpointError: a wrong argument, file or folder, before any training.
        FloatingPointError: the loss is not finite.
        Interrupted: a KeyboardInterrupt, after Ctrl-C, SIGTERM or SIGHUP, with the current step finished and
            the state written.
    """
    folder = Path(config.out)
    with ExitStack() as held:
        made = folder.is_dir()
        if made:
            held.enter_context(locked(folder))
        if (folder / DICTIONARY_RUN).exists() and config.resume:
            finished = load(folder)
            _kept(config, finished.config, given)
            return finished
        begun = _begun(folder, config.resume)
        if begun:
            config = _kept(config, _config(read_config(folder)), given)
        device = resolve_device(config.device)
        torch.manual_seed(config.seed)
        if dataset is None and config.data == "planted":
            data = _planted(config, device)
        else:
            data = _open(config, device, dataset)
        sae = config.module(data.width)
        check_writable(folder)
        if not made:
            held.enter_context(locked(folder))
            _begun(folder, resume=False)  # another process may have been faster
        remove_leftovers(folder)
        return _run(config, data, sae.to(device), progress, begun)


def _begun(folder: Path, resume: bool) -> bool:
    """True if a folder has an unfinished run; ``CheckpointError`` for a run that is not to be resumed."""
    if (folder / DICTIONARY_RUN).exists():
        raise CheckpointError(f"out: {folder} has a run already; choose another folder")
    if has_checkpoint(folder):
        raise CheckpointError(f"out: {folder} holds a run of fastae train, or a model; choose another folder")
    begun = (folder / DICTIONARY_STATE).exists()
    if begun and not resume:
        raise CheckpointError(f"out: {folder} has an unfinished run; continue it with resume (--resume)")
    return begun


def _kept(
    config: SparseTrainConfig, own: SparseTrainConfig, given: Collection[str] | None
) -> SparseTrainConfig:
    """The configuration of a run as it is resumed, with the options of ``config`` that it takes anew."""
    asked = asdict(config)
    names = differing(asked, asdict(own), asdict(SparseTrainConfig()), given)
    warn_of_kept([name for name in names if name not in _FREE], stacklevel=3)
    return replace(own, **{name: asked[name] for name in _FREE})


def _run(
    config: SparseTrainConfig,
    data: _Data,
    sae: SparseAutoencoder,
    progress: Callable[[int, dict[str, float]], None] | None,
    begun: bool,
) -> SparseRun:
    """Train and measure an untrained module, and write its folder."""
    folder, rows = Path(config.out), data.rows
    optimizer = OPTIMIZERS[config.optimizer](sae, config.rate)
    if begun:
        start = restore_state(folder, sae, optimizer)
        if start.data is not None and rows is not None and not rows.matches(start.data):
            raise CheckpointError(f"{folder}: was trained on other data than {config.data} is now")
    else:
        start = Position(data=None if rows is None else rows.fingerprint())
        sae.initialize_(data.sample)
    log = _fit(config, sae, optimizer, data.source, start, progress)
    sae.eval()
    if isinstance(sae.options.activation, BatchTopK):
        sae.calibrate_threshold_(data.sample[:: max(1, len(data.sample) // (16 * config.batch_size))])
    figures = evaluate(sae, data.held_out, data.directions)
    run = SparseRun(sae, data.scaling, config, figures, folder)
    _write(run, log)
    (folder / DICTIONARY_STATE).unlink(missing_ok=True)
    return run


def _fit(
    config: SparseTrainConfig,
    sae: SparseAutoencoder,
    optimizer: torch.optim.Optimizer,
    source: Source,
    start: Position,
    progress: Callable[[int, dict[str, float]], None] | None,
) -> list[dict[str, float]]:
    """Train from a position to the end, saving the state now and then; returns the log."""
    step, rows = TrainingStep(sae, optimizer), len(source)
    per_epoch = -(-rows // config.batch_size)
    try:
        start.check(config.epochs, per_epoch)
    except ValueError as error:
        raise CheckpointError(f"{Path(config.out) / DICTIONARY_STATE}: {error}") from error
    log, saved = list(start.log), time.monotonic()

    def save(epoch: int, batch: int) -> None:
        """Write the state where that is due, and stop if a signal came."""
        nonlocal saved
        if interruption.number or time.monotonic() - saved >= config.checkpoint_seconds:
            position = Position(epoch, batch, step.sums() if batch else {}, log, start.data)
            save_state(writer, Path(config.out), asdict(config), sae, optimizer, position)
            saved = time.monotonic()
        if interruption.number:
            raise Interrupted(interruption.number, Path(config.out), "sae train")

    with Interruption() as interruption, BackgroundWriter() as writer:
        for epoch in range(start.epoch, config.epochs):
            first = start.batch if epoch == start.epoch else 0
            step.reset(start.sums if first else None)
            order = source.order(mix(config.seed, epoch))
            batches = source.batches(order, config.batch_size, first * config.batch_size)
            for number, (x, _) in enumerate(batches, first + 1):
                done = (epoch * per_epoch + number) / (config.epochs * per_epoch)
                step(x, rates=[config.rate * min(done / _WARM_UP, (1 - done) / _DECAY, 1.0)])
                if number < per_epoch:
                    save(epoch, number)
            terms = {name: total / rows for name, total in step.sums().items()}
            terms["dead"] = int(sae.dead.sum())
            log.append({"epoch": epoch + 1, **terms})
            if progress is not None:
                progress(epoch + 1, terms)
            save(epoch + 1, 0)
    return log


def _config(values: dict[str, Any]) -> SparseTrainConfig:
    """A configuration from JSON; options of other versions are left out.

    Raises:
        ValueError, TypeError: a value does not fit.
    """
    known = {field.name for field in fields(SparseTrainConfig)}
    given = {name: value for name, value in values.items() if name in known}
    return SparseTrainConfig(**typed_fields(SparseTrainConfig, given))


def load(path: Path | str) -> SparseRun:
    """The run in a folder that :func:`train` wrote.

    Raises:
        CheckpointError: there is none, or it cannot be read.
    """
    path = Path(path)
    sae = formats.read(path, "fastae").eval()
    try:
        values = json.loads((path / DICTIONARY_RUN).read_text("utf-8"))
        config = _config(values["config"])
        scaling = None if values["scaling"] is None else AffineScaling.from_dict(values["scaling"])
        figures = dict(values["figures"])
        if config.latents != sae.code_features:  # or planted rows could take any memory
            raise ValueError(f"latents: {config.latents}, but the dictionary has {sae.code_features}")
        if scaling is not None and scaling.width not in (None, sae.in_features):
            raise ValueError(f"scaling: {scaling.width} columns do not fit rows of {sae.in_features}")
    except (OSError, KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path / DICTIONARY_RUN}: could not be read ({error})") from error
    return SparseRun(sae, scaling, config, figures, path)


def read_log(path: Path) -> list[dict[str, str]]:
    """The rows of a run's log.csv; none where there is no such file."""
    file = path / "log.csv"
    if not file.is_file():
        return []
    with file.open(newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


@torch.no_grad()
def evaluate(
    sae: SparseAutoencoder, batches: Iterable[Tensor], directions: Tensor | None = None
) -> dict[str, Any]:
    """Figures of a dictionary on rows.

    Returns:
        ``rows``; ``fvu``, the share of the variance of all rows that is not explained; ``mse`` per row,
        summed over features; ``l0``, active latents per row; ``latents``; ``silent``, those active in no
        row; and with the ``directions`` of planted rows ``recovered``, the share found at a cosine of 0.9.

    Raises:
        ValueError: there are no rows.
    """
    rows, active = 0, 0
    error = squares = 0.0
    sums: Tensor | None = None
    fired = torch.zeros(sae.code_features, dtype=torch.bool, device=sae.encoder.weight.device)
    for x in batches:
        code = sae.encode(x)
        fired[code.indices[code.values > 0]] = True
        active += int((code.values > 0).sum())
        error += float((sae.reconstruct(x) - x).square().sum(dtype=torch.float64))
        wide = x.double()
        sums = wide.sum(0) if sums is None else sums + wide.sum(0)
        squares += float(wide.square().sum())
        rows += len(x)
    if sums is None or not rows:
        raise ValueError("batches: needs at least one row")
    variance = squares - float(sums.square().sum()) / rows
    figures = {
        "rows": rows,
        "fvu": error / variance if variance > 0 else float("nan"),
        "mse": error / rows,
        "l0": active / rows,
        "latents": sae.code_features,
        "silent": int((~fired).sum()),
    }
    if directions is not None:
        figures["recovered"] = recovered_share(sae.decoder.weight, directions)
    return figures


def frontier(sae: SparseAutoencoder, batches: Iterable[Tensor]) -> list[tuple[float, float]]:
    """(active latents per row, FVU) of the k largest activations per row, for k = 1, 2, 4, ...

    Without further training, up to four times the dictionary's own number; none for a gated code, whose
    pre-activations do not say what its gates let through.
    """
    if isinstance(sae.options.activation, Gated):
        return []
    batches = list(batches)
    most = min(sae.code_features, 4 * max(1.0, evaluate(sae, batches)["l0"]))
    points = []
    for k in (2**n for n in range(int(most).bit_length())):
        truncated = copy.copy(sae)
        truncated.options = replace(sae.options, activation=TopK(k), l0=0.0)
        figures = evaluate(truncated, batches)
        points.append((figures["l0"], figures["fvu"]))
    return points


def rows_of(rows: Rows, device: torch.device | str = "cpu") -> Iterable[Tensor]:
    """The rows of a data set as tensors, some at a time."""
    for _, chunk in rows.chunks(_CHUNK):
        yield torch.from_numpy(chunk).to(device)


def planted(config: SparseTrainConfig) -> Planted:
    """The planted rows of a configuration: half as many directions as latents, 4 of them per row."""
    return planted_rows(20_000, 64, max(1, config.latents // 2), 4.0, seed=config.seed)


def _planted(config: SparseTrainConfig, device: torch.device) -> _Data:
    rows, directions = planted(config)
    held = int(_HELD_OUT * len(rows))
    train_rows = rows[held:].to(device)
    held_out = rows[:held].to(device).split(_CHUNK)
    return _Data(Resident(train_rows), rows.shape[1], train_rows, held_out, directions=directions)


def _open(config: SparseTrainConfig, device: torch.device, dataset: Dataset | None) -> _Data:
    if dataset is None:
        dataset = load_dataset(config.data, scaling=config.scaling)  # pyright: ignore[reportArgumentType]
    rows, held_out = dataset.train, dataset.test
    if held_out is None:
        rows, held_out = split(rows, _HELD_OUT, config.seed)
    budget = free_memory(device) // 2 if config.memory_gib is None else int(config.memory_gib * 2**30)
    window = config.window_mib
    if is_stored(rows.array):
        window = chosen_window(config.window_mib, config.memory_gib)
    source = open_rows(rows, device, torch.float32, budget, window_mib=window)
    places = np.arange(0, len(rows), max(1, len(rows) // _SAMPLE))
    sample = torch.from_numpy(rows.read(places[:_SAMPLE])).to(device)
    return _Data(source, rows.width, sample, rows_of(held_out, device), rows, dataset.scaling)


def _write(run: SparseRun, log: list[dict[str, float]]) -> None:
    formats.write(run.sae, run.path)
    table = io.StringIO()
    writer = csv.DictWriter(table, list(log[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(log)
    write_whole(run.path / "log.csv", table.getvalue())
    values = {
        "fastae": __version__,
        "config": asdict(replace(run.config, resume=False)),
        "scaling": None if run.scaling is None else run.scaling.to_dict(),
        "figures": run.figures,
    }
    write_whole(run.path / DICTIONARY_RUN, json.dumps(values, indent=2) + "\n")
