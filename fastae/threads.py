"""Work on other threads, or in place where threads can no longer be had."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def submit(executor: Executor, function: Callable[P, R], *args: P.args, **options: P.kwargs) -> Future[R]:
    """``executor.submit``, or the call in place once the interpreter shuts down and other threads go on."""
    try:
        return executor.submit(function, *args, **options)
    except RuntimeError:  # executors take no more work, or no thread can be started
        future: Future[R] = Future()
        try:
            future.set_result(function(*args, **options))
        except BaseException as error:
            future.set_exception(error)
        return future
