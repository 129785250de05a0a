"""Dictionaries whose latents are spread over processes."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from torch import Tensor, nn

from ..sparse.module import SparseAutoencoder
from ..sparse.shard import LatentShard
from .spread import spread_tensors, unit_dims


def shard_latents(sae: SparseAutoencoder, group: Any = None) -> SparseAutoencoder:
    """Keep this process's part of a dictionary's latents; returns the module, changed in place.

    Process r of W keeps latents r H / W to (r + 1) H / W: their rows of both weights, biases, thresholds and
    counts. All processes of the group then call the module with the same rows; losses are those of the whole
    dictionary, with exact selections over all of its latents. Make the optimizer afterwards: its state is of
    this part, too, and needs no communication. Start from the same module everywhere, as from a common seed.

        sae = shard_latents(SparseAutoencoder(512, 2**20, "topk:32").initialize_(rows))
        step = TrainingStep(sae, DictionaryAdam(sae, lr=1e-4))

    Processes outside of the group that hold the same part (data parallelism over other groups) share its
    counts; sum their gradients as usual. Encoding needs the whole dictionary: see :func:`full_state_dict`.

    Args:
        sae: the whole module, the same in every process.
        group: a process group; all processes by default. All processes have to call this function.

    Raises:
        ValueError: the latents do not divide, or the module is sharded already.
    """
    size = dist.get_world_size(group)
    if sae.shard is not None:
        raise ValueError("sae: expected a whole dictionary, got one that is sharded")
    total = sae.code_features
    if total % size:
        raise ValueError(f"code_features: expected a multiple of {size} processes, got {total}")
    starts = tuple(range(0, total + 1, total // size))
    shard = LatentShard(group, starts, _replicas(group, size, dist.get_rank(group)))
    tensors = {**dict(sae.named_parameters()), **dict(sae.named_buffers())}
    for name, dim in unit_dims(sae).items():
        tensors[name].data = shard.own(tensors[name].data, dim).clone()
        tensors[name].grad = None
    sae.shard = shard
    return sae


def full_state_dict(module: nn.Module) -> dict[str, Tensor]:
    """The state of a whole dictionary, or of layers with all units, in every process of the group.

    All of the group's processes have to call this function.

    Args:
        module: what :func:`shard_latents` or :func:`shard_units` has split, or a whole module.
    """
    state = {name: tensor.detach() for name, tensor in module.state_dict().items()}
    spread = spread_tensors(module)
    return state | {name: shard.gather(state[name], dim) for name, (shard, dim) in spread.items()}


def _replicas(group: Any, size: int, rank: int) -> Any:
    """The processes with this rank in groups like this one; ``None`` where there is one group."""
    if size == dist.get_world_size():
        return None
    groups: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(groups, tuple(dist.get_process_group_ranks(group)))
    own = None
    for place in range(size):
        made = dist.new_group(sorted({ranks[place] for ranks in groups}))
        own = made if place == rank else own
    return own
