"""Checkpoints: folders of JSON and safetensors that appear whole or not at all.

A run's folder holds ``checkpoint-<number>`` folders, each with

    config.json           the model, the data's scaling and shape, and the run's configuration
    model.safetensors     parameters under nn.Linear's names
    state.json            where training stands
    state.safetensors     the optimizer's tensors and the best parameters so far

Each is written under a temporary name, flushed to disk and renamed, and only then are older ones removed:
whatever happens, the last whole one stays. Reading them executes no code, and allocates nothing for a model
before its configuration and the shapes in the files agree.
"""

from __future__ import annotations

import copy
import json
import math
import os
import reprlib
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .._version import __version__
from ..errors import CheckpointError, DataError
from ..files import remove_leftovers
from ..nn import Options, StackedAutoencoder
from .config import LAYER_TYPES
from .data import AffineScaling, Dataset, load_dataset
from .data.labels import classes_from_json
from .evaluation import PartName, Parts, evaluation_parts
from .typed import typed

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
    tensors: dict[str, Tensor] = field(default_factory=dict)


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
    run: Path,
    stack: StackedAutoencoder,
    classifier: nn.Sequential | None,
    dataset: Dataset,
    config: dict[str, Any],
    state: TrainState,
) -> Path:
    """Write the next ``run/checkpoint-<number>``; the one before it stays, older ones are removed.

    Raises:
        CheckpointError: it could not be written; those written before are untouched.
    """
    outputs = None if classifier is None else classifier[-1].out_features
    classes = dataset.classes if dataset.num_classes == outputs else None
    description = {
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
    tensors = dict(stack.state_dict())
    if classifier is not None:
        tensors |= {_CLASSIFIER + name: value for name, value in classifier.state_dict().items()}
    temporary, existing = run / f"{_TEMPORARY}{os.getpid()}", []
    try:
        existing = _checkpoints(run)
        run.mkdir(parents=True, exist_ok=True)
        number = 1 + int(existing[-1].name.removeprefix(_PREFIX)) if existing else 1
        final = run / f"{_PREFIX}{number:06d}"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        _write_json(temporary / "config.json", description)
        _write_json(temporary / "state.json", state.values)
        _write_tensors(temporary / "model.safetensors", tensors)
        _write_tensors(temporary / "state.safetensors", state.tensors)
        for file in temporary.glob("*.safetensors"):  # written for the owner alone, whatever the umask says
            file.chmod((temporary / "config.json").stat().st_mode & 0o777)
        _sync(temporary)
        temporary.rename(final)
        _sync(run)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        kept = "earlier checkpoints are intact" if existing else "there is no earlier one"
        raise CheckpointError(f"{run}: could not write a checkpoint ({_reason(error)}); {kept}") from error
    for old in existing[: 1 - _KEEP]:
        with suppress(OSError):  # a half-removed folder must not look like a checkpoint
            shutil.rmtree(old.rename(run / f"{_TEMPORARY}{old.name}"), ignore_errors=True)
    return final


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
    path: Path | str, *, device: torch.device | str = "cpu", with_state: bool = False
) -> Checkpoint:
    """Read a run's newest checkpoint, or the one at ``path``.

    Raises:
        CheckpointError: a file is missing, truncated, or does not fit the others; named.
    """
    folder = find_checkpoint(path)
    while True:
        try:
            return _load(folder, device, with_state)
        except CheckpointError:
            newest = find_checkpoint(path)
            if newest == folder:
                raise
            folder = newest  # the run went on and removed the other one


def _load(folder: Path, device: torch.device | str, with_state: bool) -> Checkpoint:
    description = _read_json(folder / "config.json")
    file = folder / "model.safetensors"
    header = _read_header(file)
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
    tensors = _read_tensors(file, device)
    for prefix, module in modules.items():
        module.to_empty(device=device)
        own = {name: tensors[prefix + name] for name in module.state_dict()}
        module.load_state_dict(own)
    state = TrainState()
    if with_state:
        state = TrainState(
            _read_json(folder / "state.json"), _read_tensors(folder / "state.safetensors", device)
        )
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


# --- files ----------------------------------------------------------------------------------------------


def _write_json(path: Path, value: Any) -> None:
    with path.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=2)
        file.flush()
        os.fsync(file.fileno())


def _write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, path)
    _sync(path)


def _sync(path: Path) -> None:
    """Flush a file, or the names in a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: is missing") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not readable as JSON ({_reason(error)})") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: expected an object, got {type(value).__name__}")
    return value


def _read_header(path: Path) -> dict[str, tuple[list[int], str]]:
    """Shape and dtype of every tensor in a file, which is not read any further."""
    with _reading_tensors(path), safe_open(path, framework="pt") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        return {name: (list(part.get_shape()), part.get_dtype()) for name, part in slices.items()}


def _read_tensors(path: Path, device: torch.device | str) -> dict[str, Tensor]:
    with _reading_tensors(path):
        return load_file(path, device=str(device))


@contextmanager
def _reading_tensors(path: Path) -> Iterator[None]:
    """Errors of reading a file of tensors as one that names it."""
    try:
        if not path.exists():
            raise CheckpointError(f"{path}: is missing")
        path.open("rb").close()  # the library says of files that cannot be read that they are missing
        yield
    except (OSError, SafetensorError, ValueError, RuntimeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path}: not readable as safetensors ({_reason(error)})") from error


def _reason(error: Exception) -> str:
    """An error's message in one line, without the path that it is about."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split())
