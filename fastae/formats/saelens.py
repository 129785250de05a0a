"""SAELens's folders: inference files of version 6, and its training checkpoints of topk and batchtopk.

Weights are W_enc [D, H] and W_dec [H, Do]. Codes rescaled by decoder norms are folded into the weights, which
changes no reconstruction. batch_topk is written as jumprelu with one threshold, as SAELens does.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .._version import __version__
from ..sparse.module import SparseAutoencoder
from ..sparse.specs import BatchTopK, Gated, JumpReLU, ReLU, Sparsity, TopK
from .parts import (
    Source,
    inference_threshold,
    read_json,
    read_safetensors,
    require,
    write_json,
    write_safetensors,
)

WEIGHTS = "sae_weights.safetensors"
CONFIG = "cfg.json"

_NORMALIZATIONS = {"none": "none", "layer_norm": "layer_norm", "constant_norm_rescale": "norm"}
_TRANSCODERS = {
    "transcoder": "standard",
    "skip_transcoder": "standard",
    "jumprelu_transcoder": "jumprelu",
    "jumprelu_skip_transcoder": "jumprelu",
}


def read(file: Path) -> SparseAutoencoder:
    source = Source(file, read_safetensors(file), read_json(file.with_name(CONFIG)))
    architecture = str(source.config.get("architecture", "standard"))
    transcoder = architecture in _TRANSCODERS
    kind = _TRANSCODERS.get(architecture, architecture)
    if source.config.get("activation_fn_str", source.config.get("activation_fn")) == "topk":
        kind = "topk"  # files of versions before 6 have topk as an activation of the standard architecture
    normalization = source.config.get("normalize_activations", "none")
    if normalization not in _NORMALIZATIONS:
        raise source.refuse(f"normalize_activations {normalization!r} is not in the weights; fold it first")
    if source.config.get("reshape_activations", "none") != "none":
        raise source.refuse(f"reshape_activations {source.config['reshape_activations']!r} is not supported")
    weight, decoder = source.matrix("W_enc").t(), source.matrix("W_dec")
    bias = None if kind == "gated" else source.tensor("b_enc")
    if source.config.get("rescale_acts_by_decoder_norm"):
        norms = decoder.norm(dim=1)
        if bias is None:
            raise source.refuse("rescale_acts_by_decoder_norm is not for gated autoencoders")
        weight, bias, decoder = weight * norms[:, None], bias * norms, decoder / norms[:, None]
    parameters: dict[str, Tensor | None] = {
        "encoder.weight": weight,
        "encoder.bias": bias,
        "decoder.weight": decoder,
        "decoder.bias": source.tensor("b_dec"),
        "skip": source.tensors.get("W_skip"),
    }
    return source.build(
        _rule(source, kind, parameters),
        parameters,
        center=bool(source.config.get("apply_b_dec_to_input", not transcoder)),
        skip="W_skip" in source.tensors,
        normalization=_NORMALIZATIONS[normalization],
    )


def _rule(source: Source, kind: str, parameters: dict[str, Tensor | None]) -> Sparsity:
    """The rule of an architecture; adds its parameters."""
    if kind == "standard":
        return ReLU()
    if kind == "topk":
        nested = source.config.get("activation_fn_kwargs") or {}
        return TopK(source.setting("k", nested.get("k")))
    if kind == "jumprelu":
        # SAELens applies ReLU first: a negative threshold acts as 0
        parameters["threshold"] = source.tensor("threshold").clamp_min(0.0)
        return JumpReLU()
    if kind == "batchtopk":
        parameters["threshold"] = source.tensor("topk_threshold").float()
        return BatchTopK(source.setting("k"))
    if kind == "gated":
        names = {"gate_bias": "b_gate", "magnitude": "r_mag", "magnitude_bias": "b_mag"}
        parameters.update({own: source.tensor(name) for own, name in names.items()})
        return Gated()
    raise source.refuse(f"architecture {source.config.get('architecture')!r} is not supported")


def write(sae: SparseAutoencoder, folder: Path) -> Path:
    o, rule = sae.options, sae.options.activation
    transcoder = o.skip or not o.center or sae.out_features != sae.in_features
    tensors: dict[str, Tensor] = {
        "W_enc": sae.encoder.weight.t(),
        "W_dec": sae.decoder.weight,
        "b_dec": sae.decoder.bias,
    }
    config: dict[str, Any] = {}
    if sae.encoder.bias is not None:
        tensors["b_enc"] = sae.encoder.bias
    if isinstance(rule, TopK):
        architecture = "topk"
        config = {"k": rule.k, "rescale_acts_by_decoder_norm": False}
    elif isinstance(rule, JumpReLU | BatchTopK):
        architecture = "jumprelu"
        tensors["threshold"] = inference_threshold(sae, "saelens").to(sae.encoder.weight.dtype)
    elif isinstance(rule, Gated):
        architecture = "gated"
        names = {"b_gate": "gate_bias", "r_mag": "magnitude", "b_mag": "magnitude_bias"}
        tensors |= {name: getattr(sae, own) for name, own in names.items()}
    else:
        architecture = "standard"
    if transcoder and (o.skip or sae.out_features != sae.in_features):
        kinds = {value: key for key, value in _TRANSCODERS.items() if ("skip" in key) == o.skip}
        require(architecture in kinds, "saelens", f"a transcoder with {rule}")
        require(not o.center or not o.skip, "saelens", "a centred autoencoder with a linear term")
        architecture = kinds[architecture]
        config["d_out"] = sae.out_features
    if o.skip and sae.skip is not None:
        tensors["W_skip"] = sae.skip
    folder.mkdir(parents=True, exist_ok=True)
    normalizations = {own: name for name, own in _NORMALIZATIONS.items()}
    write_json(
        folder / CONFIG,
        {
            "architecture": architecture,
            "d_in": sae.in_features,
            "d_sae": sae.code_features,
            **config,
            "dtype": str(sae.encoder.weight.dtype).removeprefix("torch."),
            "device": "cpu",
            "apply_b_dec_to_input": o.center,
            "normalize_activations": normalizations[o.normalization],
            "reshape_activations": "none",
            "metadata": {"written_by": f"fastae {__version__}"},
        },
    )
    return write_safetensors(folder / WEIGHTS, {n: torch.as_tensor(t) for n, t in tensors.items()})
