"""OpenAI's sparse_autoencoder: one state dictionary, in which topk implies normalised rows."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..files import write_whole
from ..sparse.module import SparseAutoencoder
from ..sparse.specs import ReLU, TopK
from .parts import Source, read_pickle, require

WEIGHTS = "autoencoder.pt"


def read(file: Path) -> SparseAutoencoder:
    state = read_pickle(file)
    source = Source(file, state, state.get("activation_state_dict") or {})
    activation = state.get("activation", "ReLU")
    if activation not in ("ReLU", "TopK"):
        raise source.refuse(f"activation {activation!r} is not one of ReLU, TopK")
    if source.config.get("postact_fn", "ReLU") != "ReLU":
        raise source.refuse(f"postact_fn {source.config['postact_fn']!r} is not ReLU")
    parameters: dict[str, Tensor | None] = {
        "encoder.weight": source.matrix("encoder.weight"),
        "encoder.bias": source.tensor("latent_bias"),
        "decoder.weight": source.matrix("decoder.weight").t(),
        "decoder.bias": source.tensor("pre_bias"),
    }
    rule = TopK(source.setting("k")) if activation == "TopK" else ReLU()
    return source.build(rule, parameters, normalization="layer_norm" if activation == "TopK" else "none")


def write(sae: SparseAutoencoder, folder: Path) -> Path:
    o, rule = sae.options, sae.options.activation
    topk = isinstance(rule, TopK)
    require(topk or isinstance(rule, ReLU), "openai", f"the activation {rule}")
    require(o.center and not o.skip, "openai", "transcoders or linear terms")
    expected = "layer_norm" if topk else "none"
    require(o.normalization == expected, "openai", f"{rule} with normalization {o.normalization!r}")
    assert sae.encoder.bias is not None
    state: dict[str, Any] = {
        "pre_bias": sae.decoder.bias,
        "encoder.weight": sae.encoder.weight,
        "latent_bias": sae.encoder.bias,
        "decoder.weight": sae.decoder.weight.t().contiguous(),
        "stats_last_nonzero": sae.rows_since_fired,
    }
    state = {name: value.detach().cpu() for name, value in state.items()}
    state["activation"] = "TopK" if topk else "ReLU"
    if isinstance(rule, TopK):
        state["activation_state_dict"] = {"k": rule.k, "postact_fn": "ReLU"}
    folder.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return write_whole(folder / WEIGHTS, buffer.getvalue())
