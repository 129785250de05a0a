"""Checkpoints that a thread writes while training goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..distributed import ALONE, World
from ..tensors import is_split, local

if TYPE_CHECKING:
    from typing_extensions import Self

Tensors = dict[str, dict[str, Tensor]]
"""Tensors by the file that they belong to and by name."""


class BackgroundWriter:
    """A thread that writes copies of a run's tensors, one checkpoint at a time.

    A write that fails raises its error in the next call of :meth:`submit` or :meth:`wait`, and at the end of
    the ``with`` block, which waits for the write in flight whatever ends it.

    Args:
        world: the processes that write together, each of which has such a thread and makes the same calls.

    Attributes:
        world: the same processes, as the threads agree with each other.
    """

    def __init__(self, world: World = ALONE) -> None:
        self.world = world
        self._copies: Tensors = {}
        self._writing: Future[object] | None = None
        self._held = ExitStack()

    def __enter__(self) -> Self:
        self.world = self._held.enter_context(self.world.apart())
        self._thread = self._held.enter_context(ThreadPoolExecutor(1, "fastae-writer"))
        self._held.callback(self.wait)
        return self

    def __exit__(self, *error: Any) -> None:
        self._held.__exit__(*error)

    def submit(
        self, tensors: Mapping[str, Iterable[tuple[str, Tensor]]], write: Callable[[Tensors], object]
    ) -> None:
        """Copy tensors to the host's memory and have the thread call ``write`` with the copies.

        The tensors may change as soon as this method returns. Of those that all processes have alike, only
        the first process makes copies. Copies stay in the memory of the ones before, which are written first.

        Args:
            tensors: pairs of a name and a tensor for each file. They are taken one by one, and by all
                processes.
            write: writes the files.

        Raises:
            Exception: of the write before.
        """
        self.wait()
        before, self._copies, device = self._copies, {}, None
        for file, pairs in tensors.items():
            old, new = before.pop(file, {}), self._copies.setdefault(file, {})
            for name, tensor in pairs:
                if self.world.leads or is_split(tensor):
                    new[name] = _copy(tensor.detach(), old.pop(name, None))
                    device = tensor.device
        if device is not None and device.type == "cuda":
            torch.cuda.current_stream(device).synchronize()
        self._writing = self._thread.submit(write, self._copies)

    def wait(self) -> None:
        """Wait for the write in flight, if any.

        Raises:
            Exception: of the write.
        """
        if self._writing is None:
            return
        wait([self._writing])  # a signal's exception leaves it in flight
        writing, self._writing = self._writing, None
        writing.result()


def _copy(tensor: Tensor, into: Tensor | None) -> Tensor:
    """A copy in the host's memory, of an older copy where that fits; of a CUDA tensor it is under way."""
    if into is None or (into.shape, into.dtype) != (tensor.shape, tensor.dtype):
        into = torch.empty_like(
            tensor, device="cpu", memory_format=torch.contiguous_format, pin_memory=tensor.is_cuda
        )
    local(into).copy_(local(tensor), non_blocking=True)
    return into
