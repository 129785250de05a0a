"""fastae's own format: every option and counter, under the module's names."""

from __future__ import annotations

from pathlib import Path

from .._version import __version__
from ..sparse.module import SparseAutoencoder
from ..sparse.options import SparseOptions
from .parts import FormatError, Source, read_json, read_safetensors, write_json, write_safetensors

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
FORMAT = 1


def read(file: Path) -> SparseAutoencoder:
    config = read_json(file.with_name(CONFIG))
    values = config.get("sparse_autoencoder")
    if not isinstance(values, dict):
        raise FormatError(f"{file.with_name(CONFIG)}: does not describe a sparse autoencoder")
    if config.get("format") != FORMAT:
        raise FormatError(f"{file}: expected format {FORMAT}, got {config.get('format')!r}")
    source = Source(file, read_safetensors(file), values)
    for name in ("encoder.weight", "decoder.weight"):
        source.matrix(name)
    try:
        options = SparseOptions.from_dict(source.setting("options"))
    except (TypeError, ValueError) as error:
        raise source.refuse(str(error)) from error
    return source.build(
        options.activation,
        dict(source.tensors),
        **{name: value for name, value in vars(options).items() if name != "activation"},
    )


def write(sae: SparseAutoencoder, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    write_json(
        folder / CONFIG,
        {
            "format": FORMAT,
            "fastae": __version__,
            "sparse_autoencoder": {
                "in_features": sae.in_features,
                "code_features": sae.code_features,
                "out_features": sae.out_features,
                "options": sae.options.to_dict(),
            },
        },
    )
    return write_safetensors(folder / WEIGHTS, sae.state_dict())
