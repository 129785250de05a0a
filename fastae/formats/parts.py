"""Parts shared by the formats: checked reading of files, and a module built from named tensors."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from ..errors import CheckpointError
from ..files import write_whole
from ..sparse.module import SparseAutoencoder
from ..sparse.specs import BatchTopK, Sparsity


class FormatError(CheckpointError):
    """A file of a sparse autoencoder that cannot be read, or a module that a format cannot represent."""


class Source:
    """A file's tensors and settings, each asked for by name; messages name the file."""

    def __init__(self, file: Path, tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
        self.file, self.tensors, self.config = file, tensors, config

    def tensor(self, name: str) -> Tensor:
        value = self.tensors.get(name)
        if not isinstance(value, Tensor):
            raise FormatError(f"{self.file}: expected a tensor {name!r}, got {sorted(self.tensors)}")
        return value

    def matrix(self, name: str) -> Tensor:
        value = self.tensor(name)
        if value.dim() != 2 or not value.is_floating_point():
            shape = list(value.shape)
            raise FormatError(f"{self.file}: expected {name!r} to be a matrix, got {value.dtype} {shape}")
        return value

    def setting(self, name: str, default: Any = None) -> Any:
        value = self.config.get(name, default)
        if value is None:
            raise FormatError(f"{self.file}: its configuration does not say {name!r}")
        return value

    def refuse(self, reason: str) -> FormatError:
        return FormatError(f"{self.file}: {reason}")

    def build(
        self, activation: Sparsity | str, parameters: dict[str, Tensor | None], **options: Any
    ) -> SparseAutoencoder:
        """The module with these parameters under its own names, all shapes checked before it is built."""
        encoder, decoder = parameters["encoder.weight"], parameters["decoder.weight"]
        assert encoder is not None and decoder is not None
        latents, features = encoder.shape
        outputs = decoder.shape[1]
        if outputs != features:
            options["out_features"] = outputs
        try:
            sae = SparseAutoencoder(
                features, latents, activation, device="meta", dtype=encoder.dtype, **options
            )
        except (TypeError, ValueError) as error:
            raise self.refuse(str(error)) from error
        state: dict[str, Tensor] = {}
        for name, own in sae.state_dict().items():
            value = parameters.pop(name, None)
            if value is None:  # counters and thresholds that the file does not have
                fill = -1.0 if name == "threshold" else 0.0
                value = torch.full(own.shape, fill)
            if tuple(value.shape) != tuple(own.shape):
                expected, got = list(own.shape), list(value.shape)
                raise self.refuse(f"expected {name} of shape {expected}, got {got}")
            state[name] = value.detach().to(own.dtype).clone(memory_format=torch.contiguous_format)
        unknown = [name for name, value in parameters.items() if value is not None]
        if unknown:
            raise self.refuse(f"{unknown[0]} does not belong to a {sae.options.activation} autoencoder")
        sae.load_state_dict(state, assign=True)
        return sae.requires_grad_()


def read_json(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise FormatError(f"{file}: could not be read as JSON ({error})") from error
    if not isinstance(value, dict):
        raise FormatError(f"{file}: expected a JSON object, got {type(value).__name__}")
    return value


def read_safetensors(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise FormatError(f"{file}: could not be read as safetensors ({error})") from error


def read_pickle(file: Path) -> dict[str, Any]:
    """A state dictionary saved by ``torch.save``; anything but tensors and plain values is refused."""
    try:
        value = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise FormatError(f"{file}: could not be read without executing code ({error})") from error
    if not isinstance(value, dict):
        raise FormatError(f"{file}: expected a state dictionary, got {type(value).__name__}")
    return value


def write_json(file: Path, value: dict[str, Any]) -> None:
    write_whole(file, json.dumps(value, indent=2) + "\n")


def write_safetensors(file: Path, tensors: dict[str, Tensor]) -> Path:
    return write_whole(file, save({name: t.detach().cpu().contiguous() for name, t in tensors.items()}))


def require(condition: bool, format: str, reason: str) -> None:
    """Raise :class:`FormatError` unless a module can be written in a format."""
    if not condition:
        raise FormatError(f"{format}: cannot represent {reason}")


def inference_threshold(sae: SparseAutoencoder, format: str) -> Tensor:
    """The threshold [H] that stands for a jump_relu or batch_topk code in formats of inference."""
    threshold = sae.threshold.detach()
    if isinstance(sae.options.activation, BatchTopK):
        require(bool(threshold >= 0), format, "a batch_topk threshold that is not set; calibrate it first")
        return threshold.expand(sae.code_features)
    return threshold.clamp_min(0.0)
