"""dictionary_learning's folders: ae.pt, a state dictionary, and config.json, which names its class.

Classes differ in the names and layouts of their tensors and in whether they subtract the decoder's bias.
"""

from __future__ import annotations

import io
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..files import write_whole
from ..sparse.module import SparseAutoencoder
from ..sparse.specs import BatchTopK, Gated, JumpReLU, Matryoshka, ReLU, Sparsity, TopK
from .parts import Source, read_json, read_pickle, require, write_json

WEIGHTS = "ae.pt"
CONFIG = "config.json"


class _Class(NamedTuple):
    """The tensors of a class: own names to its names; ``transposed`` are stored the other way round."""

    rule: type[Sparsity]
    names: dict[str, str]
    transposed: tuple[str, ...]
    center: bool
    threshold: bool = False


_LINEAR = {
    "encoder.weight": "encoder.weight",
    "encoder.bias": "encoder.bias",
    "decoder.weight": "decoder.weight",
}
_MATRICES = {
    "encoder.weight": "W_enc",
    "encoder.bias": "b_enc",
    "decoder.weight": "W_dec",
    "decoder.bias": "b_dec",
}
_GATED = {
    "encoder.weight": "encoder.weight",
    "decoder.weight": "decoder.weight",
    "decoder.bias": "decoder_bias",
    "gate_bias": "gate_bias",
    "magnitude": "r_mag",
    "magnitude_bias": "mag_bias",
}
_CLASSES = {
    "AutoEncoder": _Class(ReLU, _LINEAR | {"decoder.bias": "bias"}, ("decoder.weight",), True),
    "AutoEncoderNew": _Class(ReLU, _LINEAR | {"decoder.bias": "decoder.bias"}, ("decoder.weight",), False),
    "GatedAutoEncoder": _Class(Gated, _GATED, ("decoder.weight",), True),
    "AutoEncoderTopK": _Class(TopK, _LINEAR | {"decoder.bias": "b_dec"}, ("decoder.weight",), True),
    "BatchTopKSAE": _Class(BatchTopK, _LINEAR | {"decoder.bias": "b_dec"}, ("decoder.weight",), True, True),
    "MatryoshkaBatchTopKSAE": _Class(BatchTopK, _MATRICES, ("encoder.weight",), True, True),
    "JumpReluAutoEncoder": _Class(JumpReLU, _MATRICES, ("encoder.weight",), False, True),
}


def read(file: Path) -> SparseAutoencoder:
    config = read_json(file.with_name(CONFIG))
    trainer = config.get("trainer", config)
    source = Source(file, read_pickle(file), trainer if isinstance(trainer, dict) else {})
    name = source.setting("dict_class")
    if name not in _CLASSES:
        raise source.refuse(f"dict_class {name!r} is not one of {', '.join(_CLASSES)}")
    kind = _CLASSES[name]
    parameters: dict[str, Tensor | None] = {}
    for own, theirs in kind.names.items():
        value = source.matrix(theirs) if own.endswith(".weight") else source.tensor(theirs)
        parameters[own] = value.t() if own in kind.transposed else value
    if kind.threshold:
        parameters["threshold"] = source.tensor("threshold")
        if kind.rule is JumpReLU:  # ReLU comes after: a negative threshold acts as 0
            parameters["threshold"] = source.tensor("threshold").clamp_min(0.0)
    options: dict[str, Any] = {"center": kind.center}
    if name == "MatryoshkaBatchTopKSAE":
        options["matryoshka"] = Matryoshka(tuple(accumulate(source.tensor("group_sizes").tolist())))
    rule = kind.rule
    activation = rule() if rule not in (TopK, BatchTopK) else rule(_k(source))  # pyright: ignore[reportCallIssue]
    return source.build(activation, parameters, **options)


def _k(source: Source) -> int:
    k = source.config.get("k", source.tensors.get("k"))
    if k is None:
        raise source.refuse("its configuration does not say 'k'")
    return int(k)


def write(sae: SparseAutoencoder, folder: Path) -> Path:
    o, rule = sae.options, sae.options.activation
    require(o.normalization == "none", "dictionary_learning", f"normalization {o.normalization!r}")
    same = sae.out_features == sae.in_features
    require(same and not o.skip, "dictionary_learning", "transcoders or linear terms")
    nested = o.matryoshka is not None
    fitting = [
        name
        for name, kind in _CLASSES.items()
        if isinstance(rule, kind.rule)
        and kind.center == o.center
        and (name == "MatryoshkaBatchTopKSAE") == nested
    ]
    reason = f"{rule}, {'' if o.center else 'not '}centred{', with prefixes' if nested else ''}"
    require(bool(fitting), "dictionary_learning", reason)
    kind = _CLASSES[fitting[0]]
    state = {}
    own_state = sae.state_dict()
    for own, theirs in kind.names.items():
        value = own_state[own]
        state[theirs] = value.t().contiguous() if own in kind.transposed else value
    if kind.threshold:
        state["threshold"] = own_state["threshold"]
    trainer: dict[str, Any] = {
        "dict_class": fitting[0],
        "activation_dim": sae.in_features,
        "dict_size": sae.code_features,
    }
    if isinstance(rule, TopK | BatchTopK):
        require(int(rule.k) == rule.k, "dictionary_learning", f"k = {rule.k}, which is no whole number")
        trainer["k"] = int(rule.k)
        state["k"] = torch.tensor(int(rule.k), dtype=torch.int)
    if isinstance(rule, TopK):
        state["threshold"] = torch.tensor(-1.0)
    if o.matryoshka is not None:
        sizes = [b - a for a, b in pairwise((0, *o.matryoshka.widths))]
        state["group_sizes"] = torch.tensor(sizes)
        trainer["group_sizes"] = sizes
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / CONFIG, {"trainer": trainer})
    buffer = io.BytesIO()
    torch.save({name: value.detach().cpu() for name, value in state.items()}, buffer)
    return write_whole(folder / WEIGHTS, buffer.getvalue())
