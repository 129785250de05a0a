"""EleutherAI's sparsify: topk autoencoders and transcoders, in the dtype that they were saved in."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from ..sparse.module import SparseAutoencoder
from ..sparse.specs import TopK
from .parts import Source, read_json, read_safetensors, require, write_json, write_safetensors

WEIGHTS = "sae.safetensors"
CONFIG = "cfg.json"


def read(file: Path) -> SparseAutoencoder:
    source = Source(file, read_safetensors(file), read_json(file.with_name(CONFIG)))
    activation = source.config.get("activation", "topk")
    if activation != "topk":
        raise source.refuse(f"activation {activation!r} is not supported")
    parameters: dict[str, Tensor | None] = {
        "encoder.weight": source.matrix("encoder.weight"),
        "encoder.bias": source.tensor("encoder.bias"),
        "decoder.weight": source.matrix("W_dec"),
        "decoder.bias": source.tensor("b_dec"),
        "skip": source.tensors.get("W_skip"),
    }
    transcode = bool(source.config.get("transcode", False))
    return source.build(
        TopK(source.setting("k")),
        parameters,
        center=not transcode,
        skip="W_skip" in source.tensors,
    )


def write(sae: SparseAutoencoder, folder: Path) -> Path:
    o, rule = sae.options, sae.options.activation
    if not isinstance(rule, TopK):
        require(False, "sparsify", f"the activation {rule}; it has topk only")
        raise AssertionError
    require(o.normalization == "none", "sparsify", f"normalization {o.normalization!r}")
    require(sae.out_features == sae.in_features, "sparsify", "an output of another width than the input")
    tensors: dict[str, Tensor] = {
        "W_dec": sae.decoder.weight,
        "b_dec": sae.decoder.bias,
        "encoder.weight": sae.encoder.weight,
    }
    if sae.encoder.bias is not None:
        tensors["encoder.bias"] = sae.encoder.bias
    if sae.skip is not None:
        tensors["W_skip"] = sae.skip
    folder.mkdir(parents=True, exist_ok=True)
    write_json(
        folder / CONFIG,
        {
            "activation": "topk",
            "expansion_factor": max(1, sae.code_features // sae.in_features),
            "normalize_decoder": True,
            "num_latents": sae.code_features,
            "k": rule.k,
            "multi_topk": False,
            "skip_connection": o.skip,
            "transcode": not o.center,
            "d_in": sae.in_features,
        },
    )
    return write_safetensors(folder / WEIGHTS, tensors)
