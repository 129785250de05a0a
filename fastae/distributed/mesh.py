"""The grid of a run's processes: copies of the parameters, and the processes that hold one together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from .world import World

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

Sharding = Literal["data", "weights", "units"]
"""What processes split besides the rows of a batch: nothing, every parameter, or the units of the code."""

COPIES, PARTS = "copies", "parts"
"""Dimensions of the grid; the processes of one copy are consecutive, and so on one machine where they can."""


def make_mesh(world: World, sharding: Sharding, size: int = 0) -> DeviceMesh | None:
    """The grid [copies, parts] of a world whose processes hold parts of the parameters.

    All processes have to call this function.

    Args:
        world: the processes.
        sharding: what they split.
        size: processes that hold one copy together; 0 takes all.

    Returns:
        ``None`` where each process holds all parameters: for ``"data"``, and for one process.

    Raises:
        ValueError: the processes do not divide into copies.
    """
    if sharding == "data":
        if size:
            raise ValueError(f"shard_size: expected 0 unless parameters are split, got {size}")
        return None
    if not world.grouped:
        return None
    size = size or world.size
    if world.size % size:
        raise ValueError(f"shard_size: expected a divisor of the {world.size} processes, got {size}")
    from torch.distributed.device_mesh import init_device_mesh

    return init_device_mesh(world.device.type, (world.size // size, size), mesh_dim_names=(COPIES, PARTS))
