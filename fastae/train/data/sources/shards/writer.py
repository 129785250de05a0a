"""Shards written one after the other, so that a kill loses none that is whole."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from ....._version import __version__
from .....errors import DataError
from .....files import check_writable, remove_leftovers, write_whole
from ...parts import LARGEST
from .files import ROWS
from .folder import METADATA, _metadata

_FORMAT = 1
_DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.uint8)


class ShardWriter:
    """Write rows to a folder of ``.safetensors`` files, each of ``rows_per_shard`` rows.

    A shard appears whole, then ``metadata.json`` lists it: a kill at any moment loses the rows of the open
    shard only. Used as a context manager, leaving it normally writes the last shard, and leaving it by an
    error does not.

        with ShardWriter("activations", dtype=torch.bfloat16, metadata={"layer": 12}) as writer:
            for x in batches:
                writer.write(x)

    Args:
        folder: where to write; made if need be.
        rows_per_shard: rows per file, all of which are in memory until it is written.
        dtype: of the files: bfloat16, float16, float32, float64 or uint8; by default that of the first rows.
        metadata: what to note in ``metadata.json``, as JSON holds it.
        append: add to the shards of a folder; without it, a folder with shards is refused.

    Attributes:
        rows: rows that shards on disk hold.

    Raises:
        DataError: the folder has shards, or with ``append`` those do not fit.
        ValueError: an argument or rows that do not fit, named.
    """

    def __init__(
        self,
        folder: Path | str,
        *,
        rows_per_shard: int = 65_536,
        dtype: torch.dtype | None = None,
        metadata: Mapping[str, Any] | None = None,
        append: bool = False,
    ) -> None:
        if rows_per_shard < 1:
            raise ValueError(f"rows_per_shard: expected at least 1, got {rows_per_shard}")
        if dtype is not None and dtype not in _DTYPES:
            names = ", ".join(map(_name, _DTYPES))
            raise ValueError(f"dtype: expected one of {names}, got {_name(dtype)}")
        self.folder, self._rows_per_shard, self._dtype = Path(folder), rows_per_shard, dtype
        self._metadata = json.loads(json.dumps(dict(metadata or {})))
        self._shards: list[dict[str, Any]] = []
        self._low = self._high = np.empty(0)
        self._open: list[tuple[Tensor, Tensor | None]] = []
        self._width: int | None = None
        check_writable(self.folder)
        remove_leftovers(self.folder)
        if append:
            self._resume()
        elif any(self.folder.glob("shard-*")) or (self.folder / METADATA).exists():
            raise DataError(f"{self.folder}: has shards already; choose another folder, or append")

    def _resume(self) -> None:
        found = _metadata(self.folder / METADATA)
        if found is None:
            return
        dtype = getattr(torch, found["dtype"])
        if self._dtype not in (None, dtype):
            raise DataError(f"{self.folder}: has shards of {found['dtype']}, got {_name(self._dtype)}")
        self._dtype, self._width, self._shards = dtype, found["features"], found["shards"]
        self._low, self._high = np.array(found["low"]), np.array(found["high"])
        self._metadata = {**found["metadata"], **self._metadata}

    @property
    def rows(self) -> int:
        return sum(shard["rows"] for shard in self._shards)

    def write(self, rows: Tensor | np.ndarray, labels: Tensor | np.ndarray | None = None) -> None:
        """Add rows [B, D], and perhaps their labels [B] (whole numbers); writes the shards that are full.

        Raises:
            ValueError: rows of another shape, or not finite in the dtype of the files.
        """
        x = torch.as_tensor(rows).detach()
        if x.dim() != 2 or not x.shape[1]:
            raise ValueError(f"rows: expected [rows, columns], got shape {list(x.shape)}")
        if self._width not in (None, x.shape[1]):
            raise ValueError(f"rows: expected {self._width} columns, got {x.shape[1]}")
        self._dtype = self._dtype or x.dtype
        if self._dtype not in _DTYPES:
            raise ValueError(f"rows: expected real numbers or a dtype for the files, got {_name(x.dtype)}")
        # a copy on the CPU, which later changes of the batch do not reach
        x = x.to("cpu", self._dtype, copy=True)
        if x.is_floating_point():
            most = min(float(LARGEST), torch.finfo(x.dtype).max)
            if not (x.abs() <= most).all():
                raise ValueError(f"rows: NaN, infinite or beyond {most:.0e} in {_name(self._dtype)}")
        y = None if labels is None else torch.as_tensor(labels).detach().to("cpu", torch.int64, copy=True)
        if y is not None and y.shape != (len(x),):
            raise ValueError(f"labels: expected [{len(x)}], got shape {list(y.shape)}")
        labelled = self._open[0][1] is not None if self._open else self._has_labels
        if labelled not in (None, y is not None):
            raise ValueError("labels: expected for all rows or for none")
        self._width = x.shape[1]
        while len(x):
            taken = self._rows_per_shard - sum(len(part) for part, _ in self._open)
            self._open.append((x[:taken], None if y is None else y[:taken]))
            x, y = x[taken:], None if y is None else y[taken:]
            if sum(len(part) for part, _ in self._open) == self._rows_per_shard:
                self.flush()

    @property
    def _has_labels(self) -> bool | None:
        return self._shards[0]["labels"] if self._shards else None

    def flush(self) -> None:
        """Write the open shard, if it has rows."""
        if not self._open:
            return
        x = torch.cat([part for part, _ in self._open])
        labels = [y for _, y in self._open if y is not None]
        tensors = {ROWS: x, **({"labels": torch.cat(labels)} if labels else {})}
        content = save(tensors)
        name = f"shard-{len(self._shards):05d}.safetensors"
        write_whole(self.folder / name, content)
        low, high = (values.double().numpy() for values in (x.amin(0), x.amax(0)))
        self._low = np.minimum(self._low, low) if self._shards else low
        self._high = np.maximum(self._high, high) if self._shards else high
        self._shards.append(
            {
                "file": name,
                "rows": len(x),
                "labels": bool(labels),
                "bytes": len(content),
                "sha256": hashlib.sha256(content).hexdigest(),
            }
        )
        self._open = []
        assert self._dtype is not None
        description = {
            "format": _FORMAT,
            "fastae": __version__,
            "features": self._width,
            "dtype": _name(self._dtype),
            "rows": self.rows,
            "metadata": self._metadata,
            "low": self._low.tolist(),
            "high": self._high.tolist(),
            "shards": self._shards,
        }
        write_whole(self.folder / METADATA, json.dumps(description) + "\n")

    def close(self) -> None:
        """Write the last shard."""
        self.flush()

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()


def _name(dtype: torch.dtype | None) -> str:
    return str(dtype).removeprefix("torch.")
