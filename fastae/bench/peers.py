"""The step of a topk dictionary by other libraries, as a function of the same tensors."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

Reconstruct = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
"""The reconstructions [N, D] of x [N, D] by weights [H, D] and biases of the encoder and the decoder."""


def saelens(features: int, k: int) -> Reconstruct:
    from sae_lens.saes import topk_sae  # pyright: ignore[reportMissingImports]

    # without its rescaling by the norms of decoder rows it is the same function as the others
    sae = topk_sae.TopKTrainingSAE(
        topk_sae.TopKTrainingSAEConfig(d_in=features, d_sae=k, k=k, rescale_acts_by_decoder_norm=False)
    )

    def reconstruct(x: Tensor, weight: Tensor, bias: Tensor, decoder: Tensor, center: Tensor) -> Tensor:
        return _called(sae, {"W_enc": weight.t(), "b_enc": bias, "W_dec": decoder, "b_dec": center}, x)

    return reconstruct


def sparsify(features: int, k: int) -> Reconstruct:
    if not torch.cuda.is_available():
        os.environ["SPARSIFY_DISABLE_TRITON"] = "1"
    from sparsify import SparseCoder, SparseCoderConfig  # pyright: ignore[reportMissingImports]

    sae = SparseCoder(features, SparseCoderConfig(num_latents=k, k=k))

    def reconstruct(x: Tensor, weight: Tensor, bias: Tensor, decoder: Tensor, center: Tensor) -> Tensor:
        named = {"encoder.weight": weight, "encoder.bias": bias, "W_dec": decoder, "b_dec": center}
        return _called(sae, named, x).sae_out

    return reconstruct


def dictionary_learning(features: int, k: int) -> Reconstruct:
    from dictionary_learning.trainers import top_k  # pyright: ignore[reportMissingImports]

    sae = top_k.AutoEncoderTopK(features, k, k)

    def reconstruct(x: Tensor, weight: Tensor, bias: Tensor, decoder: Tensor, center: Tensor) -> Tensor:
        named = {"encoder.weight": weight, "encoder.bias": bias, "decoder.weight": decoder.t()}
        return _called(sae, {**named, "b_dec": center}, x)

    return reconstruct


def _called(module: nn.Module, parameters: dict[str, Tensor], x: Tensor):
    """The module's result with other parameters, whose number of latents may differ."""
    return torch.func.functional_call(module, parameters, (x,))


class Peer(NamedTuple):
    package: str
    make: Callable[[int, int], Reconstruct]  # of features and k


PEERS = {
    "sparsify": Peer("sparsify", sparsify),
    "dictionary_learning": Peer("dictionary_learning", dictionary_learning),
    "saelens": Peer("sae_lens", saelens),
}
"""By the names of providers."""


def installed_peers() -> list[str]:
    return [name for name, peer in PEERS.items() if importlib.util.find_spec(peer.package)]
