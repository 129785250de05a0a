"""Files of a checkpoint: JSON, and tensors in one file or in the parts that processes have written.

Parts are written and read by ``torch.distributed.checkpoint`` as safetensors, each with its place in the
whole tensor, so that any number of processes can read what any other number has written. Nothing of them is
ever unpickled.
"""

from __future__ import annotations

import json
import os
import reprlib
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..errors import CheckpointError, first_line
from ..tensors import is_split

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "I64": torch.int64,
    "I32": torch.int32,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""The dtypes of parameters and of optimizers' states, as safetensors names them."""

_MALFORMED = (LookupError, TypeError, AttributeError)  # of a description of parts


def write_text(path: Path, text: str) -> None:
    """Write a file and flush it to disk."""
    path.write_text(text, encoding="utf-8")
    sync(path)


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write contiguous tensors to a file and flush it to disk."""
    save_file(tensors, path)
    sync(path)


def sync(path: Path) -> None:
    """Flush a file, or the names in a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: is missing") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not readable as JSON ({reason(error)})") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: expected an object, got {type(value).__name__}")
    return value


def write_parts(folder: Path, tensors: dict[str, Tensor], group: Any = None) -> None:
    """Write this process's parts of tensors, and the tensors that one process has whole.

    All processes of ``group`` have to call this function; ``None`` is the default group.

    Raises:
        OSError: of any process.
    """
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    with _own_errors():
        save(dict(tensors), storage_writer=writer, process_group=group)


def tensor_path(folder: Path, name: str) -> Path:
    """The file, or the folder of parts, that a checkpoint's tensors called ``name`` are in."""
    parts = folder / name
    return parts if parts.is_dir() else folder / f"{name}.safetensors"


def in_parts(path: Path) -> bool:
    """Whether a path that :func:`tensor_path` gave is a folder of parts."""
    return path.suffix != ".safetensors"


def read_header(path: Path) -> dict[str, tuple[list[int], str]]:
    """Shape and dtype of every tensor at a path, of which nothing else is read.

    Raises:
        CheckpointError: it cannot be read, or a part of a tensor is missing.
    """
    with _reading_tensors(path):
        if in_parts(path):
            return _read_header_of_parts(path)
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - no mapping
            return {name: (list(part.get_shape()), part.get_dtype()) for name, part in slices.items()}


def _read_header_of_parts(path: Path) -> dict[str, tuple[list[int], str]]:
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

    names, header = {dtype: name for name, dtype in DTYPES.items()}, {}
    tensors: dict[str, Any] = HuggingFaceStorageReader(str(path)).read_metadata().state_dict_metadata
    if not tensors:
        raise CheckpointError(f"{path}: holds no part of a tensor")
    for name, tensor in tensors.items():
        size = list(tensor.size)
        if not _covers(size, [(list(part.offsets), list(part.sizes)) for part in tensor.chunks]):
            raise CheckpointError(f"{path}: {reprlib.repr(name)[1:-1]}: a part of it is missing")
        header[name] = size, names.get(tensor.properties.dtype, str(tensor.properties.dtype))
    return header


def _covers(size: list[int], parts: list[tuple[list[int], list[int]]]) -> bool:
    """Whether parts (offsets, sizes), split along one dimension, make up a tensor."""
    parts = sorted(part for part in parts if 0 not in part[1])
    split = [d for d in range(len(size)) if any(sizes[d] != size[d] for _, sizes in parts)]
    if not parts or not split:
        return len(parts) == (0 not in size) and not any(any(offsets) for offsets, _ in parts)
    if len(split) > 1:
        return False
    end = 0
    for offsets, sizes in parts:
        if offsets != [end if d == split[0] else 0 for d in range(len(size))]:
            return False
        end += sizes[split[0]]
    return end == size[split[0]]


def read_tensors(path: Path, device: torch.device | str) -> dict[str, Tensor]:
    """All tensors at a path, whole."""
    if in_parts(path):
        stored = StoredTensors(path)
        tensors = {name: torch.empty_like(tensor, device=device) for name, tensor in stored.items()}
        read_into(path, tensors)
        return tensors
    with _reading_tensors(path):
        return load_file(path, device=str(device))


def read_into(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Copy what is at a path into tensors of the same shapes, of which this process may hold parts."""
    with _reading_tensors(path), torch.no_grad():
        if not in_parts(path) and not any(map(is_split, tensors.values())):
            with safe_open(path, framework="pt") as file:
                for name, tensor in tensors.items():
                    tensor.copy_(file.get_tensor(name))
        elif tensors:
            from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
            from torch.distributed.checkpoint.state_dict_loader import load

            reader = HuggingFaceStorageReader(str(path if in_parts(path) else path.parent))
            with _own_errors(), warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # said of no_dist
                load(dict(tensors), storage_reader=reader, no_dist=True)


class StoredTensors(Mapping[str, Tensor]):
    """The tensors at a path, on the meta device until :meth:`read_into` reads them."""

    def __init__(self, path: Path) -> None:
        self.path, self._header = path, read_header(path)

    def __getitem__(self, name: str) -> Tensor:
        shape, dtype = self._header[name]
        if dtype not in DTYPES:
            raise CheckpointError(f"{self.path}: {reprlib.repr(name)[1:-1]}: unexpected dtype {dtype}")
        return torch.empty(shape, dtype=DTYPES[dtype], device="meta")

    def __iter__(self) -> Iterator[str]:
        return iter(self._header)

    def __len__(self) -> int:
        return len(self._header)


def fill(tensors: Mapping[str, Tensor], stored: Mapping[str, Tensor]) -> None:
    """Copy stored tensors into given ones, which have to have the same names, shapes and dtypes.

    Raises:
        ValueError: one is missing, unexpected, or of another shape or dtype; begins with the file's name.
    """
    file = stored.path.name if isinstance(stored, StoredTensors) else "state.safetensors"
    for name, tensor in tensors.items():
        found = stored.get(name)
        if found is None:
            raise ValueError(f"{file}: {name}: is missing")
        if found.shape != tensor.shape or found.dtype != tensor.dtype:
            raise ValueError(
                f"{file}: {name}: expected {tensor.dtype} {list(tensor.shape)}, "
                f"got {found.dtype} {list(found.shape)}"
            )
    if unexpected := sorted(stored.keys() - tensors.keys()):
        raise ValueError(f"{file}: {reprlib.repr(unexpected[0])[1:-1]}: is not expected")
    if isinstance(stored, StoredTensors):
        read_into(stored.path, tensors)
        return
    for name, tensor in tensors.items():
        tensor.copy_(stored[name])


@contextmanager
def _own_errors() -> Iterator[None]:
    """The first error of any process, where ``torch.distributed.checkpoint`` raises a BaseException."""
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        yield
    except CheckpointException as error:
        cause = min(error.failures.items())[1][0]
        raise (cause if isinstance(cause, OSError) else OSError(first_line(cause))) from None


@contextmanager
def _reading_tensors(path: Path) -> Iterator[None]:
    """Errors of reading a file of tensors as one that names it."""
    try:
        if not path.exists():
            raise CheckpointError(f"{path}: is missing")
        if not in_parts(path):
            path.open("rb").close()  # the library says of files that cannot be read that they are missing
        yield
    except (OSError, SafetensorError, ValueError, RuntimeError, *_MALFORMED) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path}: not readable as safetensors ({reason(error)})") from error


def reason(error: Exception) -> str:
    """An error's message in one line, without the path that it is about."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split())
