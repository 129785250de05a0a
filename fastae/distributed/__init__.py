"""Training by several processes, on PyTorch's process groups."""

from .gradients import Sums
from .joining import PeerError, is_launched, joined, leads
from .latents import full_state_dict, shard_latents
from .mesh import Sharding, make_mesh
from .spread import shards_of, spread_tensors
from .units import gather_units, shard_units
from .weights import split_weights
from .world import ALONE, World, silenced

__all__ = [
    "ALONE",
    "PeerError",
    "Sharding",
    "Sums",
    "World",
    "full_state_dict",
    "gather_units",
    "is_launched",
    "joined",
    "leads",
    "make_mesh",
    "shard_latents",
    "shard_units",
    "shards_of",
    "silenced",
    "split_weights",
    "spread_tensors",
]
