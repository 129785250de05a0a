"""Launching of kernels: on a tensor's device, under the interpreter, or through the compiler alone."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime.interpreter import InterpretedFunction

from . import repeats
from .device import elementwise


class Target(NamedTuple):
    """Target that kernels are configured for.

    ``cuda`` with the compute capability times ten, ``hip`` with the architecture's name, or ``interpreter``;
    and the number of multiprocessors. Measured choices are looked up by the device's name; without a name
    there are none.
    """

    backend: str
    arch: int | str
    multiprocessors: int
    device: str = ""

    @property
    def family(self) -> str:
        """The row of the tables of configurations and cards."""
        if self.backend == "interpreter":
            return "interpreter"
        if self.backend == "hip":
            return "gfx942"
        arch = int(self.arch)
        return "sm100" if 100 <= arch < 120 else "sm90" if 90 <= arch < 100 else "sm80"

    @property
    def overlaps(self) -> bool:
        """True if a kernel can start while the one before it runs (:mod:`.device.dependence`)."""
        return self.backend == "cuda" and int(self.arch) >= 90


INTERPRETED = isinstance(elementwise.elementwise, InterpretedFunction)
"""True if TRITON_INTERPRET=1 was set when the kernels were imported: they then run on CPU tensors."""

_INTERPRETER = Target("interpreter", 0, 4, "interpreter")


@functools.lru_cache
def _device_target(index: int) -> Target:
    properties = torch.cuda.get_device_properties(index)
    if torch.version.hip:
        arch: int | str = properties.gcnArchName.split(":")[0]
        return Target("hip", arch, properties.multi_processor_count, properties.name)
    capability = 10 * properties.major + properties.minor
    return Target("cuda", capability, properties.multi_processor_count, properties.name)


def target_of(device: torch.device) -> Target:
    """The target of a tensor's device."""
    if _pretended is not None:
        return _pretended
    if device.type != "cuda":
        return _INTERPRETER
    return _device_target(torch.cuda.current_device() if device.index is None else device.index)


def problem(device: torch.device) -> str | None:
    """Reason why kernels cannot run on a device; ``None`` where they can."""
    if _pretended is not None:
        return None
    if device.type == "cpu":
        return None if INTERPRETED else "CPU tensors need TRITON_INTERPRET=1, set before the import"
    if device.type != "cuda":
        return f"there are no kernels for {device.type} tensors"
    if INTERPRETED:
        return None
    target = target_of(device)
    if target.backend == "cuda" and int(target.arch) < 80:
        return f"compute capability {int(target.arch) / 10} is below 8.0"
    return None


def launch(kernel: Any, programs: int, device: torch.device, *args: Any, **options: Any) -> None:
    """Run ``programs`` programs of a kernel on ``device``, none for 0; no host synchronisation."""
    if programs == 0:
        return
    options["enable_fp_fusion"] = True  # said here, since Triton's default is about to change
    if target_of(device).overlaps:
        options["launch_pdl"] = True
    if _compilation is not None:
        _compilation.compile(kernel, programs, args, options)
        return
    with _on(device):
        repeats.launch(kernel, programs, args, options)


def _on(device: torch.device) -> Any:
    """Kernels go to the current device, which may not be the tensors'."""
    return nullcontext() if _is_current(device) else torch.cuda.device(device)


def _is_current(device: torch.device) -> bool:
    return device.type != "cuda" or device.index == torch.cuda.current_device()


def is_ready(device: torch.device) -> bool:
    """True if a launch for tensors of ``device`` is nothing more than that."""
    return not INTERPRETED and _compilation is None and _is_current(device)


# --- without a device -------------------------------------------------------------------------------------

_pretended: Target | None = None


@contextmanager
def pretend(target: Target) -> Iterator[None]:
    """Every tensor inside counts as one of ``target``, for which kernels are planned and compiled."""
    global _pretended
    if INTERPRETED:
        raise RuntimeError("TRITON_INTERPRET is set: kernels were imported for the interpreter")
    before, _pretended = _pretended, target
    try:
        yield
    finally:
        _pretended = before


@dataclass(frozen=True)
class Compiled:
    """A kernel that was compiled and not run; ``kernel`` is Triton's CompiledKernel."""

    name: str
    kernel: Any
    options: dict[str, Any]
    seconds: float


class _Driver:
    """The part of a driver that Triton needs in order to compile: the target."""

    def __init__(self, target: Target, index: int) -> None:
        width = 64 if target.backend == "hip" else 32
        self.target = GPUTarget(target.backend, target.arch, width)
        self.index = index

    def get_current_target(self) -> Any:
        return self.target

    def get_current_device(self) -> int:
        return self.index

    def get_current_stream(self, device: int) -> int:
        return 0


class _Compilation:
    def __init__(self) -> None:
        self.kernels: list[Compiled] = []

    def compile(self, kernel: Any, programs: int, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        start = time.perf_counter()
        compiled = kernel.warmup(*args, grid=(programs,), **options)
        self.kernels.append(Compiled(kernel.__name__, compiled, options, time.perf_counter() - start))


_compilation: _Compilation | None = None
_device_of: dict[Target, int] = {}


def device_index(target: Target) -> int:
    """A number for a target, by which Triton keeps what it has compiled."""
    return _device_of.setdefault(target, len(_device_of))


@contextmanager
def compile_only(target: Target) -> Iterator[list[Compiled]]:
    """Launches inside compile for ``target`` and are collected, with ``meta`` tensors for arguments.

    What is compiled is what a launch would run: the same argument types, alignments and constants.
    """
    global _compilation
    from triton.runtime import driver

    with pretend(target):
        _compilation = _Compilation()
        fake: Any = _Driver(target, device_index(target))
        driver.set_active(fake)
        try:
            yield _compilation.kernels
        finally:
            _compilation = None
            with suppress(RuntimeError):  # a machine without a GPU has no driver to go back to
                driver.reset_active()
