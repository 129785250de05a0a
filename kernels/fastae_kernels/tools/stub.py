"""Launch kernels without a GPU: a CUDA driver that checks what it is given and runs nothing.

    python -m fastae_kernels.tools.stub FILE [ARGUMENTS]
    python -m fastae_kernels.tools.stub -m MODULE [ARGUMENTS]

runs a Python program with CPU tensors in place of a GPU's: Triton's compiler, launcher and tensor maps are
the real ones, results are not computed. It shows what a first run on the device would trip over, and fills
``TRITON_CACHE_DIR`` for one: entries hold from machine to machine where the folder's absolute path, the files
of Triton and the sources of the kernels are the same. A C compiler is needed.

:func:`stub_driver` does it in a ``with`` statement and counts a program's kernels.
"""

from __future__ import annotations

import argparse
import atexit
import ctypes
import functools
import os
import runpy
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from triton import knobs
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor as GluonDescriptor
from triton.tools.tensor_descriptor import TensorDescriptor

from ..launch import Target, device_index, pretend
from ..plan.explain import DEVICES as CARDS

SOURCE = Path(__file__).with_name("stub.c")
DEVICES = {name: target for name, target in CARDS.items() if target.backend == "cuda"}


class Launch(NamedTuple):
    """A kernel: Triton's, with its grid, or one of the library's by the name of its operator, without."""

    kernel: str
    grid: tuple[int, int, int] | None = None
    warps: int = 0
    shared: int = 0  # bytes per program
    bytes: int = 0  # of its tensors with more than one entry, of Triton's once per argument


@dataclass
class Launches:
    """What was launched in order; ``tensor_maps`` counts the operands that were described for TMA."""

    kernels: list[Launch] = field(default_factory=list)
    tensor_maps: int = 0

    def counts(self) -> Counter[str]:
        """Launches by kernel."""
        return Counter(launch.kernel for launch in self.kernels)


@functools.cache
def _library() -> tuple[str, ctypes.CDLL]:
    """The folder of ``libcuda.so.1``, compiled against the header that comes with Triton, and the library."""
    compiler = shutil.which(os.environ.get("CC", "gcc")) or shutil.which("cc")
    if compiler is None:
        raise RuntimeError("the stub driver needs a C compiler, and there is none")
    folder = tempfile.mkdtemp(prefix="stub-driver-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    include = Path(triton.__file__).parent / "backends" / "nvidia" / "include"
    options = ["-O1", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", f"-I{include}"]
    path = f"{folder}/libcuda.so.1"
    subprocess.run([compiler, *options, str(SOURCE), "-o", path], check=True)
    return folder, ctypes.CDLL(path, ctypes.RTLD_GLOBAL)  # before Triton looks for one of this name


_seen = Launches()
"""Of the innermost :func:`stub_driver`."""


@contextmanager
def stub_driver(target: Target = DEVICES["h100"], *, compute: bool = True) -> Iterator[Launches]:
    """Kernels inside are compiled for ``target`` and launched on a driver that runs nothing.

    CPU tensors count as the device's. The library's kernels are counted, too, one per operator call that
    computes something. ``compute=False`` leaves out their work on large tensors.
    Results mean nothing in either case; memory that an operator asks for is zero where it is small.

    Raises:
        RuntimeError: there is no C compiler, or a launch or tensor map that the driver would refuse.
    """
    global _seen
    folder, library = _library()
    for name, value in (
        ("stub_major", int(target.arch) // 10),
        ("stub_minor", int(target.arch) % 10),
        ("stub_multiprocessors", target.multiprocessors),
    ):
        ctypes.c_int.in_dll(library, name).value = value
    maps = ctypes.c_long.in_dll(library, "stub_tensor_maps")
    before, mapped = _seen, maps.value
    _seen = seen = Launches()
    try:
        with knobs.nvidia.scope():
            knobs.nvidia.libcuda_path = folder
            with _active(_driver(target)), pretend(target), _Counting(seen, compute):
                yield seen
    finally:
        _seen, seen.tensor_maps = before, maps.value - mapped


@functools.cache
def _driver(target: Target) -> Any:
    """Triton's CUDA driver, whose constructor asks torch for a device, with a launcher that checks first."""
    from triton.backends.nvidia import driver

    launches = ctypes.c_long.in_dll(_library()[1], "stub_launches")

    class Launcher(driver.CudaLauncher):
        def __init__(self, src: Any, metadata: Any) -> None:
            super().__init__(src, metadata)
            self._metadata = metadata

        def __call__(self, x: int, y: int, z: int, stream: int, function: int, *arguments: Any) -> None:
            name = self._metadata.name
            if self.global_scratch_size or self.profile_scratch_size:
                raise RuntimeError(f"{name}: the launch allocates memory, which a graph cannot capture")
            for tensor in _tensors(arguments[4:]):  # the kernel's, after metadata and hooks
                if tensor.numel() and not tensor.data_ptr():
                    raise RuntimeError(f"{name}: an operand of shape {list(tensor.shape)} has no memory")
            before = launches.value
            super().__call__(x, y, z, stream, function, *arguments)
            if launches.value != before + 1:
                raise RuntimeError(f"{name}: the launch did not reach the driver")
            own = self._metadata
            moved = _bytes(_tensors(arguments[4:]))
            _seen.kernels.append(Launch(name, (x, y, z), own.num_warps, own.shared, moved))

    made, index = object.__new__(driver.CudaDriver), device_index(target)
    made.utils, made.launcher_cls = driver.CudaUtils(), Launcher
    made.get_current_device = lambda: index
    made.set_current_device = lambda device: None
    made.get_current_stream = lambda device: 0
    made.get_device_capability = lambda device: divmod(int(target.arch), 10)
    return made


def _tensors(arguments: Any) -> Iterator[Tensor]:
    for argument in arguments:
        if isinstance(argument, tuple):
            yield from _tensors(argument)
        elif isinstance(argument, (TensorDescriptor, GluonDescriptor)):
            yield argument.base
        elif isinstance(argument, Tensor):
            yield argument


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors if tensor.numel() > 1)


@contextmanager
def _active(own: Any) -> Iterator[None]:
    from triton.runtime import driver

    before = driver._active
    driver.set_active(own)
    try:
        yield
    finally:
        driver._active = before


# --- the library's kernels --------------------------------------------------------------------------------

_LARGE = 1 << 16
"""Entries of a tensor from which on ``compute=False`` computes nothing."""

_NO_KERNEL = {"detach", "_unsafe_view", "lift_fresh", "_local_scalar_dense", "record_stream", "set_"}


class _Counting(TorchDispatchMode):
    """Counts the calls that launch kernels of the library, inside of fastae's operators, too."""

    def __init__(self, seen: Launches, compute: bool) -> None:
        super().__init__()
        self.seen, self.compute = seen, compute

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "fastae":  # look into it
            with self:
                return func._op_dk(torch._C.DispatchKey.CompositeExplicitAutograd, *args, **kwargs)
        name = func._schema.name.partition("::")[2]
        allocates = "empty" in name or name == "resize_"
        counted = func.namespace == "aten" and not (allocates or func.is_view or name in _NO_KERNEL)
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if self.compute or func.is_view or not self._is_large(func, tensors, args, kwargs):
            result = func(*args, **kwargs)
        else:
            result = _without_work(func, args, kwargs)
        if allocates and isinstance(result, Tensor) and result.numel() <= _LARGE:
            result.zero_()
        if counted:
            seen = [t for t in (*tensors, *tree_leaves(result)) if isinstance(t, Tensor)]
            self.seen.kernels.append(Launch(name, bytes=_bytes({t.data_ptr(): t for t in seen}.values())))
        return result

    @staticmethod
    def _is_large(func: Any, tensors: list[Tensor], args: Any, kwargs: Any) -> bool:
        if any(tensor.numel() >= _LARGE for tensor in tensors):
            return True
        made = _on_meta(func, args, kwargs) if not tensors else None  # a factory
        return isinstance(made, Tensor) and made.numel() >= _LARGE


def _on_meta(func: Any, args: Any, kwargs: Any) -> Any:
    args, kwargs = tree_map_only(Tensor, lambda t: t.to("meta"), (args, kwargs))
    elsewhere = {"device": torch.device("meta"), "generator": None}
    return func(*args, **{name: elsewhere.get(name, value) for name, value in kwargs.items()})


def _without_work(func: Any, args: Any, kwargs: Any) -> Any:
    """The results of an operator by shape and dtype; of one that writes to its arguments, those."""
    written = [
        kwargs[a.name] if a.name in kwargs else args[i]
        for i, a in enumerate(func._schema.arguments)
        if a.alias_info is not None and a.alias_info.is_write and (a.name in kwargs or i < len(args))
    ]
    if written:
        return written[0] if len(func._schema.returns) == 1 else None if not func._schema.returns else written
    made = _on_meta(func, args, kwargs)
    return tree_map_only(
        Tensor, lambda t: torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="cpu"), made
    )


# --- the command ------------------------------------------------------------------------------------------


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m fastae_kernels.tools.stub",
        description="Run a Python program on a driver that checks launches and runs nothing.",
    )
    parser.add_argument("--device", choices=DEVICES, default="h100", help="what kernels are made for")
    parser.add_argument("-m", dest="module", action="store_true", help="the program is a module, not a file")
    parser.add_argument("program")
    parser.add_argument("arguments", nargs=argparse.REMAINDER)
    given = parser.parse_args(arguments)
    if os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
        parser.error("TRITON_INTERPRET is set: the interpreter launches nothing")
    os.environ["FASTAE_BACKEND"] = "triton"
    sys.argv = [given.program, *given.arguments]
    with stub_driver(DEVICES[given.device]) as seen:
        try:
            if given.module:
                runpy.run_module(given.program, run_name="__main__", alter_sys=True)
            else:
                sys.path.insert(0, str(Path(given.program).resolve().parent))
                runpy.run_path(given.program, run_name="__main__")
            code = 0
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    triton_s = [launch for launch in seen.kernels if launch.grid is not None]
    print(
        f"stub driver: {len(triton_s)} launches of {len({launch.kernel for launch in triton_s})} kernels and "
        f"{seen.tensor_maps} tensor maps, none refused; nothing was computed",
        file=sys.stderr,
    )
    return code


if __name__ == "__main__":
    sys.exit(main())
