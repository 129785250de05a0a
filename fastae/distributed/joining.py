"""Joining the processes that a launcher has started, and leaving them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch

from ..devices import resolve_device
from .heartbeat import Heartbeat
from .world import World, silenced

_MARGIN = timedelta(seconds=60)  # after the heartbeat's own limit


class PeerError(RuntimeError):
    """Another process of the group ended."""

    exit_code = 75  # EX_TEMPFAIL: started again, the run may end well


def leads() -> bool:
    """Whether this process speaks for its group: it is of rank 0, or alone."""
    if _in_group():
        return torch.distributed.get_rank() == 0
    return not is_launched() or os.environ["RANK"] == "0"


@contextmanager
def joined(device: str, timeout: float) -> Iterator[World]:
    """Join the processes of a launcher, or the default process group where there is one.

    A process that no launcher started is a world of its own, and nothing is paid for it.

    Args:
        device: ``"auto"``, ``"cuda"`` or ``"cpu"``; with several processes each takes the CUDA device of its
            number on the machine. One process may name any device.
        timeout: seconds that a process may keep the others waiting before they end, and name it.

    Raises:
        ValueError: a device that the processes of a machine cannot share.
        PeerError: from within, another process of the group ended.
    """
    if not _in_group() and not is_launched():
        yield World(device=resolve_device(device))
        return
    own_group = not _in_group()
    limit = 2 * timedelta(seconds=timeout) + _MARGIN
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    place = _device(device, local_rank, local_size)
    if own_group:
        if place.type == "cuda":
            # as PyTorch's notes on CUDA graphs ask for collectives in a graph; the heartbeat ends what hangs
            os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0")
        backend = "cpu:gloo,cuda:nccl" if place.type == "cuda" else "gloo"
        _init_group(backend, limit)
    rank, size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    world = World(rank, size, place, local_size, limit=limit)
    try:
        with Heartbeat(world, timeout):
            yield world
    except RuntimeError as error:
        if not _is_of_a_connection(error):
            raise
        cause = str(error).splitlines()[0]
        raise silenced(
            PeerError(f"another process of the run ended ({cause})"), elsewhere=not world.leads
        ) from error
    finally:
        if own_group:
            torch.distributed.destroy_process_group()


def _in_group() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def is_launched() -> bool:
    """Whether torchrun, or another launcher that sets its variables, started this as one of several."""
    names = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    return all(name in os.environ for name in names) and os.environ["WORLD_SIZE"] != "1"


def _init_group(backend: str, limit: timedelta) -> None:
    """Make the default group of the processes that were started together.

    The launcher's store outlives them and may hold the addresses of processes that have died.
    """
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    store, rank, size = next(rendezvous("env://", timeout=limit))
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    store = PrefixStore(f"attempt {attempt}", store)
    torch.distributed.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=limit)


def _device(name: str, local_rank: int, local_size: int) -> torch.device:
    """The device of one of several processes on a machine."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        count = torch.cuda.device_count()
        if count and local_size > count:
            raise ValueError(
                f"device: expected one process per CUDA device, got {local_size} for {count} on this machine"
            )
        name = f"cuda:{local_rank}"
    elif name != "cpu":
        raise ValueError(f"device: expected auto, cuda or cpu for several processes, got {name!r}")
    device = resolve_device(name)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


def _is_of_a_connection(error: RuntimeError) -> bool:
    """Whether an error is of the connection to other processes; gloo has no class for its own."""
    return isinstance(error, torch.distributed.DistError) or "gloo" in str(error)
