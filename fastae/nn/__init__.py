"""Modules: the fused encoder layer, autoencoders, their stacks, and fusing existing models."""

from ..sparse.module import SparseAutoencoder
from .autoencoder import Autoencoder
from .encoder import EncoderLayer
from .fusion import fuse, unfuse
from .options import Options
from .stacked import StackedAutoencoder

__all__ = [
    "Autoencoder",
    "EncoderLayer",
    "Options",
    "SparseAutoencoder",
    "StackedAutoencoder",
    "fuse",
    "unfuse",
]
