"""Sparse dictionaries: TopK, BatchTopK, JumpReLU, gated and L1 autoencoders at any number of latents."""

from .code import SparseAutoencoderLoss, SparseCode
from .functional import Gate, sparse_autoencoder_loss, sparse_decode, topk_encode
from .options import SparseObjective, SparseOptions
from .specs import (
    AuxK,
    BatchTopK,
    Gated,
    JumpReLU,
    Matryoshka,
    ReLU,
    Sparsity,
    TopK,
    parse_sparsity,
)

__all__ = [
    "AuxK",
    "BatchTopK",
    "Gate",
    "Gated",
    "JumpReLU",
    "Matryoshka",
    "ReLU",
    "SparseAutoencoderLoss",
    "SparseCode",
    "SparseObjective",
    "SparseOptions",
    "Sparsity",
    "TopK",
    "parse_sparsity",
    "sparse_autoencoder_loss",
    "sparse_decode",
    "topk_encode",
]
