"""Checkpoints: folders of JSON and safetensors that appear whole or not at all.

A run's folder holds ``checkpoint-<number>`` folders, each with

    config.json           the model, the data's scaling and shape, and the run's configuration
    model.safetensors     parameters under nn.Linear's names
    state.json            where training stands
    state.safetensors     the optimizer's tensors and the best parameters so far

Each is written under a temporary name, flushed to disk and renamed, and only then are older ones removed:
whatever happens, the last whole one stays. Reading them never executes code.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .._version import __version__
from ..errors import CheckpointError
from ..nn import Options, StackedAutoencoder
from .data import AffineScaling, Dataset, load_dataset
from .data.labels import classes_from_json

FORMAT = 1
_PREFIX = "checkpoint-"
_KEEP = 2
_TEMPORARY = ".tmp-"
_CLASSIFIER = "classifier."


@dataclass
class TrainState:
    """Where training stands: ``values`` as JSON holds them, and named tensors."""

    values: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class Checkpoint:
    """A trained model and what is needed to use it on new data.

    Attributes:
        stack: the autoencoders.
        classifier: encoders of its own and a last layer that gives logits, or ``None``.
        scaling: what the training data were scaled by.
        feature_shape: the shape of one row, as (28, 28).
        feature_names: one name per column, where there are names.
        classes: the labels [K] that the classifier's outputs stand for, or ``None`` without a classifier.
        paths: the absolute paths of the files that ``config`` names; see :class:`~.data.Dataset`.
        config: the run's configuration, as JSON holds it.
        state: where training stands; empty unless asked for.
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
                named = self._option(key, None)
                kept = self.paths.get(key)
                options[key] = kept if named is not None and kept and os.path.exists(kept) else named
            if options["data"] is None:
                raise CheckpointError(f"{self.path}: does not say what it was trained on; name the data")
            options |= {"test_fraction": self._option("test_fraction", 0.0), "seed": self._option("seed", 0)}
        else:
            options["data"] = data
        return load_dataset(
            **options,
            scaling=self.scaling,
            features=self.feature_names,
            classes=self.classes,
            download=data is not None,
        )

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
    temporary = run / f"{_TEMPORARY}{os.getpid()}"
    try:
        run.mkdir(parents=True, exist_ok=True)
        existing = _checkpoints(run)
        number = 1 + int(existing[-1].name.removeprefix(_PREFIX)) if existing else 1
        final = run / f"{_PREFIX}{number:06d}"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        _write_json(temporary / "config.json", description)
        _write_json(temporary / "state.json", state.values)
        _write_tensors(temporary / "model.safetensors", tensors)
        _write_tensors(temporary / "state.safetensors", state.tensors)
        _sync(temporary)
        temporary.rename(final)
        _sync(run)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise CheckpointError(
            f"{run}: could not write a checkpoint ({error}); earlier checkpoints are intact"
        ) from error
    for old in existing[: 1 - _KEEP]:
        # a half-removed folder must not look like a checkpoint
        shutil.rmtree(old.rename(run / f"{_TEMPORARY}{old.name}"), ignore_errors=True)
    return final


def clean_run(run: Path) -> None:
    """Remove what a killed run left half-written."""
    for folder in run.glob(f"{_TEMPORARY}*"):
        shutil.rmtree(folder, ignore_errors=True)


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
    description = _read_json(folder / "config.json")
    try:
        if description["format"] != FORMAT:
            raise CheckpointError(
                f"{folder / 'config.json'}: format {description['format']!r}, this version reads {FORMAT}"
            )
        model, data = description["model"], description["data"]
        dtype = {"float32": torch.float32, "float64": torch.float64}[model["dtype"]]
        options = [Options.from_dict(layer) for layer in model["layers"]]
        stack = StackedAutoencoder(
            model["sizes"], options, probes=model["probes"], device=device, dtype=dtype
        )
        classifier = None
        if model["classes"] is not None:
            classifier = copy.deepcopy(stack).classifier(model["classes"])
        scaling = AffineScaling.from_dict(data["scaling"])
        feature_shape = tuple(int(size) for size in data["feature_shape"])
        if int(np.prod(feature_shape)) != stack.sizes[0]:
            raise ValueError(f"feature_shape {feature_shape} does not fit sizes {stack.sizes}")
        if scaling.width not in (None, stack.sizes[0]):
            raise ValueError(f"scaling of {scaling.width} columns does not fit sizes {stack.sizes}")
        feature_names = _feature_names(data.get("feature_names"), stack.sizes[0])
        classes = None
        if classifier is not None:  # of a run without a list of classes, they are the numbers
            kept = data.get("classes")
            classes = (
                np.arange(model["classes"]) if kept is None else classes_from_json(kept, model["classes"])
            )
        paths = {str(key): str(path) for key, path in dict(data.get("paths") or {}).items()}
        config = dict(description["train"])
    except CheckpointError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else error
        raise CheckpointError(f"{folder / 'config.json'}: {reason}") from error

    tensors = _read_tensors(folder / "model.safetensors", device)
    own = {name: value for name, value in tensors.items() if not name.startswith(_CLASSIFIER)}
    try:
        stack.load_state_dict(own)
        rest = {n.removeprefix(_CLASSIFIER): value for n, value in tensors.items() if n not in own}
        if classifier is not None:
            classifier.load_state_dict(rest)
        elif rest:
            raise RuntimeError("holds a classifier that config.json does not describe")
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{folder / 'model.safetensors'}: {reason}") from error
    state = TrainState()
    if with_state:
        state = TrainState(
            _read_json(folder / "state.json"), _read_tensors(folder / "state.safetensors", device)
        )
    return Checkpoint(
        stack, classifier, scaling, feature_shape, config, state, folder, feature_names, classes, paths
    )


def _feature_names(names: Any, width: int) -> tuple[str, ...] | None:
    if names is None:
        return None
    if not isinstance(names, list) or len(names) != width or not all(isinstance(n, str) for n in names):
        raise ValueError(f"feature_names: expected {width} names")
    return tuple(names)


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
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not readable as JSON ({error})") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: expected an object, got {type(value).__name__}")
    return value


def _read_tensors(path: Path, device: torch.device | str) -> dict[str, Tensor]:
    try:
        return load_file(path, device=str(device))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: is missing") from None
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(f"{path}: not readable as safetensors ({error})") from error
