"""Sparse autoencoders in files: fastae's own, and those of other libraries, read and written.

    fastae        config.json and model.safetensors
    saelens       SAELens: cfg.json and sae_weights.safetensors
    sparsify      EleutherAI's sparsify: cfg.json and sae.safetensors
    dictionary_learning   config.json and ae.pt
    openai        OpenAI's sparse_autoencoder: autoencoder.pt
    gemma_scope   params.npz (read only)

Nothing is executed on load: pickles are read with ``weights_only``, and every shape is checked before a
module is built. Written files name activation, threshold and scaling, so that they have one reading. Options
of inference that a format cannot say are refused; training options stay in fastae's own format alone.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

from ..checks import check_name
from ..sparse.module import SparseAutoencoder
from . import dictionary_learning, gemma_scope, native, openai, saelens, sparsify
from .parts import FormatError

__all__ = ["FORMATS", "FormatError", "read", "write"]

# most telling files first
FORMATS: dict[str, ModuleType] = {
    "saelens": saelens,
    "sparsify": sparsify,
    "dictionary_learning": dictionary_learning,
    "openai": openai,
    "gemma_scope": gemma_scope,
    "fastae": native,
}


def read(path: Path | str, format: str = "auto") -> SparseAutoencoder:
    """The sparse autoencoder in a folder (or, of formats that are one file, in that file).

    Args:
        path: the folder or file.
        format: one of :data:`FORMATS`, or ``"auto"`` to tell by the files there.

    Raises:
        FormatError: there is none, or it cannot be represented; the message names the file and the reason.
        ValueError: an unknown format.
    """
    path = Path(path)
    check_name("format", format, ("auto", *FORMATS))
    if format == "auto":
        format = _detect(path)
    module = FORMATS[format]
    file = path / module.WEIGHTS if path.is_dir() else path
    if not file.is_file():
        if any(path.glob("checkpoint-*")):
            raise FormatError(f"{path}: holds a run of fastae train, not a sparse autoencoder")
        raise FormatError(f"{file}: no such file, which the {format} format needs")
    return module.read(file)


def write(sae: SparseAutoencoder, path: Path | str, format: str = "fastae") -> Path:
    """Write a sparse autoencoder into a folder, made if need be; returns the weights' file.

    Raises:
        FormatError: the format cannot represent it; nothing was written.
        ValueError: an unknown format, or one that is read only.
    """
    check_name("format", format, [name for name, module in FORMATS.items() if hasattr(module, "write")])
    return FORMATS[format].write(sae, Path(path))


def _detect(path: Path) -> str:
    if not path.exists():
        raise FormatError(f"{path}: no such file or folder")
    for name, module in FORMATS.items():
        if (path / module.WEIGHTS).is_file() if path.is_dir() else path.name == module.WEIGHTS:
            return name
    expected = ", ".join(f"{module.WEIGHTS} ({name})" for name, module in FORMATS.items())
    raise FormatError(f"{path}: no sparse autoencoder found; expected one of {expected}")
