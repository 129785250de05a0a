"""Launches that were made before: the compiled kernel that Triton chose then, launched again.

For each launch Triton binds the arguments, describes them and looks up what it compiled for such ones, which
takes several times as long as the launch itself. Here that description is the key of the choice: Triton's own
function gives the types of all arguments, the alignment of addresses and the numbers that get a kernel of
their own; constants and options count by value. Where hooks, debugging or instrumentation could change the
choice or watch the launch, Triton does all of it. It is JITFunction.run of Triton 3.6 to 3.9 in short.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import triton
from triton import knobs
from triton.compiler import CompiledKernel
from triton.experimental.gluon._runtime import GluonJITFunction
from triton.runtime import JITFunction, driver

KNOWN = (3, 6) <= tuple(map(int, triton.__version__.split(".")[:2])) <= (3, 9)
"""True for the versions of Triton that choose and launch as here. With others every launch is Triton's."""

if KNOWN:
    from triton._C.libtriton import native_specialize_impl as _describe
else:
    _describe: Any = None


class Compiled(NamedTuple):
    """A kernel as Triton launches it, and what must still hold for it to be the one."""

    kernel: Any
    run: Callable[..., None]
    function: int
    metadata: Any
    constants: tuple[Any, ...]  # that follow the arguments
    caches: Any  # Triton's, of the device
    globals: tuple[tuple[dict[str, Any], str, Any], ...]  # (namespace, name, value) that the kernel reads

    def holds(self, device: int) -> bool:
        """True if Triton would choose the same one."""
        kernel = self.kernel
        if kernel.debug or kernel.pre_run_hooks or kernel.device_caches[device] is not self.caches:
            return False
        return all([space.get(name) is value for space, name, value in self.globals])

    def launch(self, programs: int, stream: int, args: tuple[Any, ...]) -> None:
        """Launch with arguments of the same description."""
        self.run(programs, 1, 1, stream, self.function, self.metadata, None, None, None, *args)


class _Kernel:
    """The launches of a kernel, by their keys."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel  # alive, so that no other one gets its id
        self.compiled: dict[Any, Compiled] = {}
        self.constexprs = tuple(kernel.constexprs)
        # one description fits all parameters where none asks for another
        self.plain = KNOWN and not any(
            p.has_default
            or (
                not p.is_constexpr
                and (p.annotation or p.do_not_specialize or p.do_not_specialize_on_alignment)
            )
            for p in kernel.params
        )

    def add(self, key: Any, compiled: Any, given: int, options: dict[str, Any], caches: Any) -> None:
        """Keep what Triton launched for ``given`` arguments, if only constants follow those."""
        rest = self.kernel.params[given:]
        if type(compiled) is not CompiledKernel or not all(
            p.is_constexpr and p.name in options for p in rest
        ):
            return
        launcher: Any = compiled
        used = self.kernel.used_global_vals
        self.compiled[key] = Compiled(
            self.kernel,
            launcher.run,
            launcher.function,
            launcher.packed_metadata,
            tuple(options[p.name] for p in rest),
            caches,
            tuple((space, name, space.get(name)) for (name, _), (_, space) in used.items()),
        )


class Recorder(Protocol):
    def launched(self, compiled: Compiled | None, programs: int, args: tuple[Any, ...]) -> None:
        """A launch was made; ``None`` where it cannot be repeated."""


class _Recording(threading.local):
    recorder: Recorder | None = None


_recording = _Recording()


@contextmanager
def recorded(recorder: Recorder) -> Iterator[None]:
    """Tell a recorder of this thread's launches."""
    before, _recording.recorder = _recording.recorder, recorder
    try:
        yield
    finally:
        _recording.recorder = before


_kernels: dict[int, _Kernel] = {}


def launch(kernel: Any, programs: int, args: tuple[Any, ...], options: dict[str, Any]) -> None:
    """``kernel[(programs,)](*args, **options)`` on the current device and stream."""
    compiled = _launch(kernel, programs, args, options)
    if _recording.recorder is not None:
        _recording.recorder.launched(compiled, programs, args)


def _launch(kernel: Any, programs: int, args: tuple[Any, ...], options: dict[str, Any]) -> Compiled | None:
    known = _kernels.get(id(kernel))
    if known is None and type(kernel) in (JITFunction, GluonJITFunction):
        known = _kernels[id(kernel)] = _Kernel(kernel)
    if known is None or not known.plain or watched():
        kernel[(programs,)](*args, **options)
        return None
    active: Any = driver.active
    device = active.get_current_device()
    caches = kernel.device_caches[device]  # of compiled kernels, their keys, the target, the backend
    described = _describe(caches[3], args, False, True, True)
    constants = [args[i] for i in known.constexprs if i < len(args)]
    key = device, described, *constants, *options.items()
    compiled = known.compiled.get(key)
    if compiled is not None and compiled.holds(device):
        compiled.launch(programs, active.get_current_stream(device), args + compiled.constants)
        return compiled
    known.add(key, kernel[(programs,)](*args, **options), len(args), options, caches)
    return known.compiled.get(key)


def watched() -> bool:
    """True where a launch is more, or of another kernel, than its arguments tell."""
    runtime: Any = knobs.runtime
    enter, leave = runtime.launch_enter_hook, runtime.launch_exit_hook  # functions, or chains of them
    return bool(
        getattr(enter, "calls", enter)
        or getattr(leave, "calls", leave)
        or runtime.debug
        or runtime.add_stages_inspection_hook
        or knobs.compilation.instrumentation_mode
    )
