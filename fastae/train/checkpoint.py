"""Checkpoints: folders of JSON and safetensors that appear whole or not at all.

A run's folder holds ``checkpoint-<number>`` folders, each with

    config.json           the model, the data's scaling and shape, and the run's configuration
    model.safetensors     parameters under nn.Linear's names
    state.json            where training stands
    state.safetensors     the optimizer's tensors and the best parameters so far

Where processes hold parts of the tensors, folders ``model`` and ``state`` have a file of each process instead
of one file. Each checkpoint is written under a temporary name, flushed to disk and renamed, and only then are
older ones removed: whatever happens, the last whole one stays. Reading them executes no code, and allocates
nothing for a model before its configuration and the shapes in the files agree.
"""

from __future__ import annotations

import copy
import json
import math
import os
import reprlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from .._version import __version__
from ..distributed import World, silenced, split_weights
from ..errors import CheckpointError, DataError
from ..files import remove_leftovers
from ..nn import Options, StackedAutoencoder
from ..tensors import is_split
from .checkpoint_files import (
    StoredTensors,
    in_parts,
    read_header,
    read_into,
    read_json,
    read_tensors,
    reason,
    sync,
    tensor_path,
    write_parts,
    write_tensors,
    write_text,
)
from .config import LAYER_TYPES
from .data import AffineScaling, Dataset, load_dataset
from .data.labels import classes_from_json
from .evaluation import PartName, Parts, evaluation_parts
from .spread import whole_parameters
from .typed import typed
from .writing import BackgroundWriter, Tensors

FORMAT = 1
_PREFIX = "checkpoint-"
_KEEP = 2
_TEMPORARY = ".tmp-"
_STACK, _CLASSIFIER = "", "classifier."  # prefixes of the tensors' names
_DTYPES = {torch.float32: "F32", torch.float64: "F64"}  # as safetensors names them


@dataclass
class TrainState:
    """Position of a run: ``values`` as JSON holds them, and named tensors."""

    values: dict[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass
class Checkpoint:
    """A trained model and all that its use on new data needs.

    Attributes:
        stack: the autoencoders.
        classifier: encoders of its own and a last layer that gives logits, or ``None``.
        scaling: scaling of the training data.
        feature_shape: the shape of one row, as (28, 28).
        feature_names: one name per column, where there are names.
        classes: the labels [K] that the classifier's outputs stand for, or ``None`` without a classifier.
        paths: the absolute paths of the files that ``config`` names; see :class:`~.data.Dataset`.
        config: the run's configuration, as JSON holds it.
        state: position of the run; empty unless asked for.
        path: the folder it was read from.
    """

    stack: StackedAutoencoder
    classifier: nn.Sequential | None
    scaling: AffineScaling
    feature_shape: tuple[int, ...]
    config: dict[str, Any]
    state: TrainState
    path: Path
    feature_names: tuple[str, ...] | None = None
    classes: np.ndarray | None = None
    paths: dict[str, str] = field(default_factory=dict)

    def load_data(self, data: str | None = None) -> Dataset:
        """Load data as the training data were: the same columns, scaling and classes.

        Args:
            data: a data set's name or a path. By default what the run was trained on: the files where they
                were, else as the configuration names them. Nothing is downloaded then, as a configuration
                from elsewhere must not start that.

        Raises:
            DataError: for data that cannot be found, read or used.
            CheckpointError: for a configuration that does not say what the run was trained on.
        """
        options: dict[str, Any] = {"label": self._option("label", ()), "drop": self._option("drop", ())}
        if data is None:
            for key in ("data", "test", "labels"):
                named, kept = self._option(key, None), self.paths.get(key)
                options[key] = named if named is None or kept is None or not os.path.exists(kept) else kept
                if kept is not None and named is not None and not os.path.exists(options[key]):
                    raise DataError(f"{key}: neither {kept} nor {named} is there; name the data (--data)")
            if options["data"] is None:
                raise CheckpointError(f"{self.path}: does not say what it was trained on; name the data")
            options |= {"test_fraction": self._option("test_fraction", 0.0), "seed": self._option("seed", 0)}
        else:
            options["data"] = data
        return load_dataset(
            **options,
            scaling=self.scaling,
            features=self.feature_names,
            missing=self.stack.input_options.missing,
            classes=self.classes,
            download=data is not None,
        )

    def parts(self, dataset: Dataset, own: bool, part: PartName | None = None) -> Parts:
        """The rows of a part of a data set, by default those to evaluate the run on.

        Of its ``own`` data the run held rows out for validation. See :func:`.evaluation.evaluation_parts`.
        """
        held_out = (self._option("validation", 0.0), self._option("seed", 0)) if own else (0.0, 0)
        return evaluation_parts(dataset, *held_out, part)

    def _option(self, name: str, default: Any) -> Any:
        """An option of the run's configuration; ``CheckpointError`` unless of the default's type."""
        value = self.config.get(name, default)
        if isinstance(default, tuple):
            if isinstance(value, list | tuple) and all(isinstance(text, str) for text in value):
                return tuple(value)
        elif isinstance(value, str | None) if default is None else type(value) in (int, type(default)):
            return value
        raise CheckpointError(f"{self.path / 'config.json'}: train.{name}: got {value!r}")


def save_checkpoint(
    writer: BackgroundWriter,
    run: Path,
    stack: StackedAutoencoder,
    classifier: nn.Sequential | None,
    dataset: Dataset,
    config: dict[str, Any],
    state: dict[str, Any],
    tensors: Iterable[tuple[str, Tensor]] = (),
) -> None:
    """Have the next ``run/checkpoint-<number>`` written; the one before it stays, older ones are removed.

    All processes of the writer's world call this function. The first one writes what all have alike.

    Args:
        writer: whose thread writes. The checkpoint appears some time after this function has returned.
        run: the run's folder.
        stack: the autoencoders.
        classifier: the classifier on top, if any.
        dataset: what they are trained on.
        config: the run's configuration, as JSON holds it.
        state: position of the run, as JSON holds it.
        tensors: names and tensors of the state.

    Raises:
        CheckpointError: in all processes, the checkpoint before could not be written; those written earlier
            are untouched. For this one, the writer's next call and the end of its block raise it.
    """
    description = _describe(stack, classifier, dataset, config)
    position = json.dumps(state)  # the training goes on with its values
    world = writer.world

    def write(copies: Tensors) -> None:
        split = {file for file, values in copies.items() if any(map(is_split, values.values()))}

        def fill(folder: Path) -> None:
            for file in sorted(split):  # first, as all processes have to get there
                write_parts(folder / file, copies[file], world.channel)
            if world.leads:
                # indented for people: many times slower, and so not done while a step waits
                write_text(folder / "config.json", json.dumps(description, indent=2))
                write_text(folder / "state.json", position)
                for file in sorted(copies.keys() - split):
                    write_tensors(folder / f"{file}.safetensors", copies[file])

        _write_next(run, world, fill)

    writer.submit({"model": _named_tensors(stack, classifier), "state": tensors}, write)


def _named_tensors(stack: nn.Module, classifier: nn.Module | None) -> Iterator[tuple[str, Tensor]]:
    """Names in ``model.safetensors`` and tensors, with all units, of a run's modules."""
    modules = {_STACK: stack} if classifier is None else {_STACK: stack, _CLASSIFIER: classifier}
    for prefix, module in modules.items():
        for name, tensor in whole_parameters(module):
            yield prefix + name, tensor


def _describe(
    stack: StackedAutoencoder, classifier: nn.Sequential | None, dataset: Dataset, config: dict[str, Any]
) -> dict[str, Any]:
    """The content of ``config.json``."""
    outputs = None if classifier is None else classifier[-1].out_features
    classes = dataset.classes if dataset.num_classes == outputs else None
    return {
        "format": FORMAT,
        "fastae": __version__,
        "model": {
            "sizes": stack.sizes,
            "probes": stack.probes,
            "layers": [layer.options.to_dict() for layer in stack.autoencoders],
            "classes": outputs,
            "dtype": str(stack.autoencoders[0].encoder.weight.dtype).removeprefix("torch."),
        },
        "data": {
            "name": dataset.name,
            "feature_shape": list(dataset.feature_shape),
            "scaling": dataset.scaling.to_dict(),
            "feature_names": None if dataset.feature_names is None else list(dataset.feature_names),
            "classes": None if classes is None else classes.tolist(),
            "paths": dict(dataset.paths),
        },
        "train": config,
    }


def _write_next(run: Path, world: World, write: Callable[[Path], None]) -> Path:
    """The run's next checkpoint, a folder that all processes have written to."""
    existing: list[Path] = []
    temporary = run / f"{_TEMPORARY}{os.getpid()}"
    try:
        existing = world.first(partial(_checkpoints, run))
        temporary = world.first(partial(_make_temporary, temporary))
        with world.agreed():
            write(temporary)
        return world.first(partial(_publish, temporary, existing))
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        kept = "earlier checkpoints are intact" if existing else "there is no earlier one"
        message = f"{run}: could not write a checkpoint ({reason(error)}); {kept}"
        raise silenced(CheckpointError(message), elsewhere=getattr(error, "elsewhere", False)) from error


def _make_temporary(folder: Path) -> Path:
    folder.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def _publish(temporary: Path, existing: list[Path]) -> Path:
    """Flush a folder, give it the number after those of the ``existing`` ones, and remove old ones."""
    run = temporary.parent
    number = 1 + int(existing[-1].name.removeprefix(_PREFIX)) if existing else 1
    for file in temporary.glob("*.safetensors"):  # written for the owner alone, whatever the umask says
        file.chmod((temporary / "config.json").stat().st_mode & 0o777)
    for folder in (*(child for child in temporary.iterdir() if child.is_dir()), temporary):
        sync(folder)
    published = temporary.rename(run / f"{_PREFIX}{number:06d}")
    sync(run)
    for old in existing[: 1 - _KEEP]:
        with suppress(OSError):  # a half-removed folder must not look like a checkpoint
            shutil.rmtree(old.rename(run / f"{_TEMPORARY}{old.name}"), ignore_errors=True)
    return published


def gather_checkpoint(path: Path | str, out: Path) -> None:
    """Write a run's newest checkpoint, or the one at ``path``, as one with whole tensors in one file.

    Raises:
        CheckpointError: it cannot be read, or ``out`` is a folder with files, or cannot be written.
    """
    folder = load_checkpoint(path).path  # all of it, so that nothing is written of one that is damaged
    temporary = out.with_name(f"{_TEMPORARY}{out.name}")
    try:
        if out.is_dir() and not any(out.iterdir()):
            out.rmdir()
        if os.path.lexists(out):
            raise CheckpointError(f"out: {out} is there already; give a new folder")
        _make_temporary(temporary)
        for name in ("config.json", "state.json"):
            shutil.copyfile(folder / name, temporary / name)
        for name in ("model", "state"):
            tensors = read_tensors(tensor_path(folder, name), "cpu")
            write_tensors(temporary / f"{name}.safetensors", tensors)
        sync(temporary)
        temporary.rename(out)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{out}: could not be written ({reason(error)})") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def clean_run(run: Path) -> None:
    """Remove what killed processes left half-written; to be called by the holder of the run's lock."""
    for folder in run.glob(f"{_TEMPORARY}*"):
        if folder.is_dir():
            shutil.rmtree(folder, ignore_errors=True)
    remove_leftovers(run)


def _checkpoints(run: Path) -> list[Path]:
    """A run's checkpoints, oldest first."""
    folders = (child for child in run.glob(f"{_PREFIX}*") if child.name.removeprefix(_PREFIX).isdigit())
    return sorted(folders, key=lambda child: int(child.name.removeprefix(_PREFIX)))


def find_checkpoint(path: Path | str) -> Path:
    """The newest checkpoint of a run's folder, or the folder itself where it is a checkpoint.

    Raises:
        CheckpointError: there is none.
    """
    path = Path(path)
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such folder; expected a run or a checkpoint")
    if (path / "config.json").is_file():
        return path
    found = _checkpoints(path)
    if not found:
        raise CheckpointError(f"{path}: holds no checkpoint (no config.json and no {_PREFIX}... folder)")
    return found[-1]


def load_checkpoint(
    path: Path | str, *, device: torch.device | str = "cpu", with_state: bool = False, mesh: Any = None
) -> Checkpoint:
    """Read a run's newest checkpoint, or the one at ``path``.

    With ``mesh``, the grid of processes that :func:`fastae.distributed.make_mesh` gives, each reads its part
    of the parameters. Tensors of the state that are in parts, or will be, are on the meta device until they
    are needed.

    Raises:
        CheckpointError: a file is missing, truncated, or does not fit the others; named.
    """
    folder = find_checkpoint(path)
    while True:
        try:
            return _load(folder, device, with_state, mesh)
        except CheckpointError:
            newest = find_checkpoint(path)
            if newest == folder:
                raise
            folder = newest  # the run went on and removed the other one


def read_config(path: Path | str) -> dict[str, Any]:
    """The configuration of the run whose checkpoint :func:`load_checkpoint` would read, as JSON holds it."""
    file = find_checkpoint(path) / "config.json"
    config = read_json(file).get("train")
    if not isinstance(config, dict):
        raise CheckpointError(f"{file}: train: expected an object, got {type(config).__name__}")
    return config


def _load(folder: Path, device: torch.device | str, with_state: bool, mesh: Any) -> Checkpoint:
    description = read_json(folder / "config.json")
    if "sparse_autoencoder" in description:
        raise CheckpointError(f"{folder}: holds a sparse autoencoder, which the commands of fastae sae read")
    file = tensor_path(folder, "model")
    header = read_header(file)
    try:
        if description["format"] != FORMAT:
            raise ValueError(
                f"format {reprlib.repr(description['format'])}, this version reads format {FORMAT}"
            )
        data, config = description["data"], dict(description["train"])
        modules = _model_on_meta(description["model"], layers=_count_layers(header))
        _compare(file, header, modules)  # from here on numbers in the configuration are as large as the file
        width = typed("sizes", description["model"]["sizes"], tuple[int, ...])[0]
        scaling, feature_shape = _read_scaling(data, width)
        feature_names = _feature_names(data.get("feature_names"), width)
        classes = _classes(data.get("classes"), modules.get(_CLASSIFIER))
        paths = typed("paths", data.get("paths") or {}, dict[str, str])
    except CheckpointError:
        raise
    except _UNFIT as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise CheckpointError(f"{folder / 'config.json'}: {reason}") from error
    into = {}
    for prefix, module in modules.items():
        if mesh is not None:
            split_weights(module, mesh)
        module.to_empty(device=device)
        into |= {prefix + name: tensor for name, tensor in module.state_dict().items()}
    read_into(file, into)
    state = TrainState()
    if with_state:
        file = tensor_path(folder, "state")
        later = mesh is not None or in_parts(file)
        tensors = StoredTensors(file) if later else read_tensors(file, device)
        state = TrainState(read_json(folder / "state.json"), tensors)
    stack, classifier = modules[_STACK], modules.get(_CLASSIFIER)
    assert isinstance(stack, StackedAutoencoder) and isinstance(classifier, nn.Sequential | None)
    return Checkpoint(
        stack, classifier, scaling, feature_shape, config, state, folder, feature_names, classes, paths
    )


def _feature_names(names: Any, width: int) -> tuple[str, ...] | None:
    if names is None:
        return None
    if not isinstance(names, list) or len(names) != width or not all(isinstance(n, str) for n in names):
        raise ValueError(f"feature_names: expected {width} names")
    return tuple(names)


def _classes(kept: Any, classifier: nn.Module | None) -> np.ndarray | None:
    """The labels of a classifier's outputs; of a run without a list of them, they are the numbers."""
    if not isinstance(classifier, nn.Sequential):
        return None
    number = classifier[-1].out_features
    assert isinstance(number, int)
    if kept is not None:
        return classes_from_json(kept, number)
    return np.arange(number)


_UNFIT = (KeyError, TypeError, ValueError, AttributeError, RuntimeError, OverflowError)
"""Errors of a description that does not fit; torch raises RuntimeError for sizes beyond all memory."""


def _model_on_meta(model: Mapping[str, Any], layers: int) -> dict[str, nn.Module]:
    """The modules that a configuration describes, without memory, by the prefix of their tensors' names."""
    sizes = typed("sizes", model["sizes"], tuple[int, ...])
    if len(sizes) - 1 > layers:  # or building them could take hours
        raise ValueError(f"sizes: {len(sizes) - 1} layers, but model.safetensors has {layers}")
    dtype = {"float32": torch.float32, "float64": torch.float64}[
        typed("dtype", model["dtype"], Literal["float32", "float64"])
    ]
    options = [
        Options.from_dict({key: typed(key, value, LAYER_TYPES.get(key, Any)) for key, value in layer.items()})
        for layer in model["layers"]
    ]
    stack = StackedAutoencoder(sizes, options, probes=model["probes"], device="meta", dtype=dtype)
    modules: dict[str, nn.Module] = {_STACK: stack}
    if model["classes"] is not None:
        modules[_CLASSIFIER] = copy.deepcopy(stack).classifier(model["classes"])
    return modules


def _read_scaling(data: Mapping[str, Any], width: int) -> tuple[AffineScaling, tuple[int, ...]]:
    """The scaling and the shape of a row, as the configuration describes them."""
    scaling = AffineScaling.from_dict(data["scaling"])
    feature_shape = typed("feature_shape", data["feature_shape"], tuple[int, ...])
    if math.prod(feature_shape) != width:
        raise ValueError(f"feature_shape: {feature_shape} does not fit rows of {width}")
    if scaling.width not in (None, width):
        raise ValueError(f"scaling: {scaling.width} columns do not fit rows of {width}")
    return scaling, feature_shape


def _count_layers(header: Mapping[str, Any]) -> int:
    return len({name.split(".")[1] for name in header if name.startswith("layers.")})


def _compare(
    file: Path, header: Mapping[str, tuple[list[int], str]], modules: Mapping[str, nn.Module]
) -> None:
    """Refuse a file whose tensors are not exactly those of ``modules``."""
    expected = {
        prefix + name: (list(value.shape), _DTYPES[value.dtype])
        for prefix, module in modules.items()
        for name, value in module.state_dict().items()
    }
    for name, (shape, dtype) in expected.items():
        if name not in header:
            raise CheckpointError(f"{file}: {name}: is missing")
        if header[name] != (shape, dtype):
            raise CheckpointError(
                f"{file}: {name}: expected {dtype} {shape}, got {header[name][1]} {header[name][0]}"
            )
    if unexpected := sorted(header.keys() - expected):
        raise CheckpointError(
            f"{file}: {reprlib.repr(unexpected[0])[1:-1]}: config.json does not describe it"
        )
