"""Folders of shards as one array of rows that are read on demand."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .....errors import DataError, one_line
from ...labels import check_labels
from ...parts import RawData, RawPart, check_part
from ...tables import Columns
from ..files import reading
from .files import Handle, Piece, open_arrow, open_npy, open_parquet, open_safetensors, stored_dtype

METADATA = "metadata.json"
_FORMATS: dict[str, Callable[[Path, Columns], Piece]] = {
    ".npy": open_npy,
    ".safetensors": open_safetensors,
    ".parquet": open_parquet,
    ".arrow": open_arrow,
    ".feather": open_arrow,
}
_SAVED_DATASET, _SAVED_PARTS = "state.json", "dataset_dict.json"  # of Hugging Face datasets
_MOST_OPEN = 128  # files; a map holds a descriptor
_WHOLE_BYTES = 1 << 30  # of all shards, up to which their content is hashed
_SAMPLES, _SAMPLE_BYTES = 1024, 1 << 16  # blocks of all shards that are hashed instead


class Shards:
    """Rows [N, D] over the files of a folder, read on demand.

    A folder holds files of one format, of rows of one width and dtype, in the order of their names:
    ``.safetensors`` (a tensor named rows, and perhaps labels, as :class:`ShardWriter` writes them), ``.npy``,
    ``.parquet``, ``.arrow`` and ``.feather`` (a column of lists, or a column per feature), or a data set that
    Hugging Face's ``datasets`` saved. Other files are left alone. ``.npy``, ``.safetensors`` and ``.arrow``
    are memory-mapped; of Parquet a row group is in memory at a time. Indexing returns new arrays: of the
    stored dtype, and float32 for bfloat16.

    Args:
        path: the folder.
        label: the column or tensor with the labels; see :func:`load_dataset`.
        drop: columns of tables to leave out.

    Attributes:
        shape: (N, D).
        dtype: of the arrays that indexing returns.
        kind: the stored dtype by name, as "bfloat16".
        feature_shape: the shape of one row, as (28, 28).
        labels: [N], or None.
        metadata: what the folder's writer noted.
        files: the shards.

    Raises:
        DataError: no shards, one that is missing, unreadable, or not like the others.
    """

    is_sequential = False

    def __init__(self, path: Path | str, *, label: tuple[str, ...] = (), drop: tuple[str, ...] = ()) -> None:
        self._open_folder(Path(path), Columns(label, drop))

    @classmethod
    def _with_columns(cls, path: Path, columns: Columns) -> Shards:
        shards = cls.__new__(cls)
        shards._open_folder(path, columns)
        return shards

    def _open_folder(self, path: Path, columns: Columns) -> None:
        self.path, self.name = path, one_line(path.absolute().name)
        listing = _listing(path, self.name)
        self.metadata: dict[str, Any] = listing.get("metadata", {})
        self.files: list[Path] = listing["files"]
        self._pieces = [_open_piece(self.name, file, columns) for file in self.files]
        first = self._pieces[0]
        for piece in self._pieces:
            _check_alike(self.name, piece, first)
        for piece, rows in zip(self._pieces, listing.get("rows", ()), strict=False):
            if piece.rows != rows:
                raise DataError(
                    f"{self.name}: {piece.path.name}: {piece.rows} rows, {rows} according to {METADATA}"
                )
        self._starts = np.cumsum([0, *(piece.rows for piece in self._pieces)])
        self.shape = (int(self._starts[-1]), first.width)
        self.kind, self._stored = first.kind, stored_dtype(first.kind)
        self.dtype = np.dtype(np.float32) if self.kind == "bfloat16" else self._stored
        self.feature_shape, self.feature_names = first.feature_shape, first.feature_names
        self.ranges: tuple[np.ndarray, np.ndarray] | None = listing.get("ranges")
        self.is_checked = self.ranges is not None
        if self.ranges is not None and any(len(values) != first.width for values in self.ranges):
            raise DataError(f"{self.name}: {METADATA}: ranges of {len(self.ranges[0])} columns")
        self.labels = self._read_labels()
        self._handles: OrderedDict[int, Handle] = OrderedDict()
        self._lock = threading.Lock()

    def _read_labels(self) -> np.ndarray | None:
        found = [piece.labels for piece in self._pieces]
        if not any(found):
            return None
        labels = []
        for piece, read in zip(self._pieces, found, strict=True):
            name = f"{self.name}: {piece.path.name}"
            if read is None:
                raise DataError(f"{name}: no labels, where other shards have them")
            labels.append(check_labels(name, read(), piece.rows))
        return check_labels(self.name, np.concatenate(labels), self.shape[0])

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes of the stored values."""
        return self.shape[0] * self.shape[1] * self._stored.itemsize

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        """A new array [B, D] of the rows at a slice or at numbers in any order."""
        if isinstance(rows, slice):
            rows = np.arange(*rows.indices(len(self)))
        rows = np.where(rows < 0, rows + len(self), rows)
        order = None if len(rows) < 2 or (np.diff(rows) >= 0).all() else np.argsort(rows)
        out = self.raw(len(rows))
        self.read_into(rows if order is None else rows[order], out)
        if order is not None:
            unsorted = np.empty_like(out)
            unsorted[order] = out
            out = unsorted
        return self.decode(out)

    def raw(self, rows: int) -> np.ndarray:
        """An empty array [rows, D] of the stored dtype; uint16 for bfloat16."""
        return np.empty((rows, self.shape[1]), self._stored)

    def read_into(self, rows: np.ndarray, out: np.ndarray) -> None:
        """Read rows, by rising numbers, into an array of :meth:`raw`."""
        places = np.searchsorted(rows, self._starts)
        for number in np.flatnonzero(np.diff(places)):
            part = slice(*places[number : number + 2])
            with self._lock:  # of handles, which may keep a block
                name = f"{self.name}: {self.files[number].name}"
                try:
                    self._handle(int(number)).read_into(rows[part] - self._starts[number], out[part])
                except FileNotFoundError:
                    raise DataError(f"{name}: is missing") from None

    def decode(self, raw: np.ndarray) -> np.ndarray:
        """Stored values as ``dtype``."""
        if self.kind != "bfloat16":
            return raw
        return torch.from_numpy(raw.view(np.int16)).view(torch.bfloat16).float().numpy()

    def edges(self, size: int) -> np.ndarray:
        """First row of each block that is read at once, and N: row groups, else ``size`` rows of a shard."""
        edges = [np.zeros(1, np.int64)]
        for piece, start in zip(self._pieces, self._starts, strict=False):
            own = (
                np.append(np.arange(0, piece.rows, size), piece.rows) if piece.edges is None else piece.edges
            )
            edges.append(own[1:] + start)
        return np.unique(np.concatenate(edges))

    def fingerprint(self) -> str:
        """A digest of all rows, and one per shard.

        Up to 1 GiB of shards are read whole. Of larger ones, blocks spread over each are read, and its size
        and time of modification are taken instead of the rest.
        """
        sizes = [file.stat().st_size for file in self.files]
        samples = 0 if sum(sizes) <= _WHOLE_BYTES else max(2, _SAMPLES // len(sizes))
        parts = [
            f"{file.name}={_digest(file, size, samples)}"
            for file, size in zip(self.files, sizes, strict=True)
        ]
        return f"{len(self)} x {self.shape[1]} {self.kind}/{'/'.join(parts)}"

    def difference(self, fingerprint: str) -> str:
        """The first shard that is not as it was when a fingerprint was taken; "" where all are."""
        kept, now = _digests(fingerprint), _digests(self.fingerprint())
        for name in [*kept, *now]:
            if kept.get(name) != now.get(name):
                change = "is new" if name not in kept else "is missing" if name not in now else "has changed"
                return f"{name} {change}"
        return ""

    def _handle(self, number: int) -> Handle:
        if number in self._handles:
            self._handles.move_to_end(number)
            return self._handles[number]
        piece = self._pieces[number]
        while len(self._handles) >= (_MOST_OPEN if piece.edges is None else 1):
            self._handles.popitem(last=False)
        self._handles[number] = piece.open()
        return self._handles[number]

    def close(self) -> None:
        """Close the files, which are opened again when they are read."""
        with self._lock:
            self._handles.clear()


def is_listed_folder(folder: Path) -> bool:
    """Whether a folder says that it holds shards."""
    if any((folder / name).is_file() for name in (_SAVED_DATASET, _SAVED_PARTS)):
        return True
    return _metadata(folder / METADATA) is not None


def is_shard_folder(folder: Path) -> bool:
    """Whether a folder has files that may be shards."""
    return any(file.suffix.lower() in _FORMATS and file.is_file() for file in folder.iterdir())


def read_shard_folder(path: Path, name: str, columns: Columns) -> RawData:
    """Map a folder of shards; a saved ``DatasetDict`` with train and test gives both parts."""
    parts = path / _SAVED_PARTS
    if parts.is_file():
        with reading(parts):
            splits = json.loads(parts.read_text("utf-8")).get("splits", [])
        if "train" not in splits:
            raise DataError(f"{name}: expected a split named train, got {', '.join(splits) or 'none'}")
        test = _read_part(path / "test", f"{name}/test", columns) if "test" in splits else None
        return RawData(_read_part(path / "train", f"{name}/train", columns), test)
    return RawData(_read_part(path, name, columns))


def _read_part(path: Path, name: str, columns: Columns) -> RawPart:
    shards = Shards._with_columns(path, columns)
    part = check_part(name, shards, shards.labels, feature_names=shards.feature_names)
    return replace(
        part,
        feature_shape=shards.feature_shape,
        label_source="its shards" if shards.labels is not None else "",
        notes=(f"{len(shards.files)} shards of {shards.kind}",),
    )


# --- files ------------------------------------------------------------------------------------------------


def _listing(folder: Path, name: str) -> dict[str, Any]:
    """The files of a folder in order, and what its metadata say of them."""
    if not folder.is_dir():
        raise DataError(f"{name}: no such folder: {folder}")
    if (folder / _SAVED_DATASET).is_file():
        with reading(folder / _SAVED_DATASET):
            state = json.loads((folder / _SAVED_DATASET).read_text("utf-8"))
            files = [folder / file["filename"] for file in state["_data_files"]]
            if state.get("_indices_data_files"):
                raise DataError(f"{name}: rows are chosen by an index; save it after flatten_indices()")
        return {"files": _present(name, files, _SAVED_DATASET)}
    own = _metadata(folder / METADATA)
    if own is not None:
        with reading(folder / METADATA):
            shards = own["shards"]
            files = _present(name, [folder / Path(shard["file"]).name for shard in shards], METADATA)
            for file, shard in zip(files, shards, strict=True):
                if file.stat().st_size != shard["bytes"]:
                    raise DataError(
                        f"{name}: {file.name}: {file.stat().st_size} bytes, {shard['bytes']} according to"
                        f" {METADATA}: it has changed, or is not whole"
                    )
            ranges = np.array(own["low"], np.float64), np.array(own["high"], np.float64)
            listing = {"rows": [shard["rows"] for shard in shards], "ranges": ranges}
        if not files:
            raise DataError(f"{name}: no shards yet, according to {METADATA}")
        return {"files": files, "metadata": own.get("metadata", {}), **listing}
    files = sorted(
        (file for file in folder.iterdir() if file.suffix.lower() in _FORMATS and file.is_file()),
        key=lambda file: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", file.name)],
    )
    if not files:
        raise DataError(f"{name}: no shards ({', '.join(_FORMATS)})")
    return {"files": _complete(name, files)}


def _metadata(file: Path) -> dict[str, Any] | None:
    """The metadata of a shard writer; ``None`` for another file of that name."""
    try:
        found = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) and isinstance(found.get("shards"), list) else None


def _present(name: str, files: list[Path], source: str) -> list[Path]:
    for file in files:
        if not file.is_file():
            raise DataError(f"{name}: {file.name}: is missing, though {source} lists it")
    return files


def _complete(name: str, files: list[Path]) -> list[Path]:
    """Files of one format, of which none is missing where their names say how many there are."""
    for file in files:
        if file.suffix.lower() != files[0].suffix.lower():
            raise DataError(f"{name}: shards of two formats: {files[0].name} and {file.name}")
    matches = [re.fullmatch(r"(.*-)(\d+)(-of-(\d+).*)", file.name) for file in files]
    numbered = [match for match in matches if match is not None]
    if len(numbered) == len(files):
        match = numbered[0]
        there, width = {int(m[2]) for m in numbered}, len(match[2])
        for number in range(int(match[4])):
            if number not in there and int(match[4]) <= 100_000:
                raise DataError(f"{name}: {match[1]}{number:0{width}}{match[3]}: is missing")
    return files


def _open_piece(name: str, file: Path, columns: Columns) -> Piece:
    opener = _FORMATS.get(file.suffix.lower())
    if opener is None:
        raise DataError(f"{name}: {file.name}: shards end in {', '.join(_FORMATS)}")
    try:
        with reading(file):
            piece = opener(file, columns)
    except DataError as error:
        raise DataError(f"{name}: {error}") from error
    if np.dtype(stored_dtype(piece.kind)).kind not in "buif":
        raise DataError(f"{name}: {file.name}: dtype {piece.kind} is not real numbers")
    if not piece.rows or not piece.width:
        raise DataError(f"{name}: {file.name}: no {'columns' if piece.rows else 'rows'}")
    return piece


def _check_alike(name: str, piece: Piece, first: Piece) -> None:
    for what, own, others in (
        ("width", *(" x ".join(map(str, p.feature_shape)) for p in (piece, first))),
        ("dtype", piece.kind, first.kind),
        ("columns", *(", ".join(p.feature_names or ()) for p in (piece, first))),
    ):
        if own != others:
            raise DataError(
                f"{name}: {piece.path.name}: {what} {own}, where {first.path.name} has {others};"
                " all shards must be alike"
            )


def _digests(fingerprint: str) -> dict[str, str]:
    """The digest of each shard by its name."""
    parts = (part.rpartition("=") for part in fingerprint.split("/")[1:])
    return {name: digest for name, _, digest in parts}


def _digest(file: Path, size: int, samples: int) -> str:
    """A digest of a file, or of ``samples`` blocks, its size and time of modification."""
    digest = hashlib.sha256(str(size).encode())
    with file.open("rb") as opened:
        if not samples:
            while block := opened.read(1 << 22):
                digest.update(block)
        else:
            for place in np.linspace(0, max(0, size - _SAMPLE_BYTES), samples).astype(np.int64):
                opened.seek(int(place))
                digest.update(opened.read(_SAMPLE_BYTES))
            digest.update(str(file.stat().st_mtime_ns).encode())
    return digest.hexdigest()[:16]
