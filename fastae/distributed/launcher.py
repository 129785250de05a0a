"""Starting several processes on one machine, with the launcher behind torchrun."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any

from ..errors import one_line
from ..interruption import Interrupted, handled
from .joining import PeerError
from .world import sendable

_LOCALHOST = "localhost:0"  # a free port
_NOTICED = 1.0  # seconds in which the launcher has seen a death, and ends those that suffer from it
_START_METHOD = "spawn"  # CUDA does not survive a fork


def launch(
    work: Callable[..., None], args: tuple[Any, ...], processes: int, restarts: int, name: str
) -> None:
    """Call a function in several processes of this machine, as ``torchrun --standalone`` would start them.

    Where a process dies, all are started again. An error that the function raises ends them for good. A
    signal is passed on to the processes, which may take their time; after a second one they have 30 seconds.

    Args:
        work: a function of a module.
        args: its arguments.
        processes: how many to start.
        restarts: how often to start them again.
        name: of the launch, as ``TORCHELASTIC_RUN_ID`` has it.

    Raises:
        Exception: of the first process in which ``work`` raised one.
        Interrupted: a signal came.
        PeerError: processes died more than ``restarts`` times.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    for logger in ("torch.distributed.elastic", "torch.multiprocessing"):  # what they say is said below
        logging.getLogger(logger).setLevel(logging.CRITICAL)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=name,
        rdzv_backend="c10d",
        rdzv_endpoint=_LOCALHOST,
        max_restarts=restarts,
        monitor_interval=0.1,
        start_method=_START_METHOD,
        signals_to_handle="SIGQUIT",  # others are handled here
    )
    received = multiprocessing.get_context(_START_METHOD).RawValue("i", 0)

    def pass_on(number: int, frame: FrameType | None) -> None:
        if received.value:
            raise SignalException("a second signal", signal.Signals(number))
        received.value = number
        for process in multiprocessing.active_children():
            with suppress(OSError, TypeError):  # it has ended, or is not there yet
                os.kill(process.pid, number)  # pyright: ignore[reportArgumentType]

    try:
        with handled(pass_on):
            errors = elastic_launch(config, _work)(received, work, args)
    except SignalException as error:
        raise Interrupted(int(error.sigval)) from None
    except ChildFailedError as error:
        if received.value:
            raise Interrupted(received.value) from None
        rank, failure = error.get_first_failure()
        end = f"signal {-failure.exitcode}" if failure.exitcode < 0 else f"exit code {failure.exitcode}"
        times = f"{restarts + 1} times, the last time" if restarts else "with"
        raise PeerError(f"processes of the run ended {times} process {rank} by {end}") from None
    for error in errors.values():
        if error is not None and not getattr(error, "elsewhere", False):
            raise error


def _work(received: Any, work: Callable[..., None], args: tuple[Any, ...]) -> BaseException | None:
    """The error that all processes have agreed on; any other ends this one, so that the launcher ends all.

    ``received`` is the signal that the launcher has passed on, which may have come before this process.
    """
    if received.value:
        return Interrupted(received.value)
    try:
        work(*args)
    except PeerError:
        time.sleep(_NOTICED)
        sys.exit(PeerError.exit_code)
    except (Exception, KeyboardInterrupt) as error:
        if not hasattr(error, "elsewhere"):
            with suppress(OSError):  # of a terminal that is gone
                sys.stderr.write(f"fastae: {one_line(error)}\n")
            sys.exit(1)
        return sendable(error)
    return None
