"""HDF5 files of named arrays, and AnnData's .h5ad, by h5py. Nothing outside the file is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ....errors import DataError
from ....optional import require
from ..parts import RawData, check_part
from ..tables import LABEL_NAMES, Columns, pick_features
from .arrays import check_sparse_shape, named_arrays
from .files import check_size


def read_hdf5(path: Path, columns: Columns) -> RawData:
    """Read named arrays at any depth, of which the last part of the name counts; or the matrix X of .h5ad."""
    h5py = require("h5py", path.name, "data")
    with h5py.File(path, "r") as file:
        if "X" in file and "obs" in file and "var" in file:
            return _read_anndata(path, file, columns)
        found: dict[str, Any] = {}

        def visit(name: str, node: Any) -> None:  # is not called for links
            if isinstance(node, h5py.Dataset):
                found[name.rpartition("/")[2] if name.rpartition("/")[2] not in found else name] = node

        file.visititems(visit)
        return named_arrays(path.name, list(found), lambda key: _array(path, found[key]), columns)


def _read_anndata(path: Path, file: Any, columns: Columns) -> RawData:
    """Cells as rows: X, the names of ``var``, and labels from a column of ``obs``."""
    matrix = file["X"]
    x = _array(path, matrix) if hasattr(matrix, "shape") else _sparse(path, matrix)
    names = _column(path, file["var"], _text(file["var"].attrs.get("_index", "_index")))
    obs = file["obs"]
    known = [key for key in obs if key != _text(obs.attrs.get("_index", "_index"))]
    label = " ".join(columns.label)
    if not columns.label:
        label = next((key for key in known if key.lower() in LABEL_NAMES), "")
    elif columns.wants_labels and label not in known:
        raise DataError(f"{path.name}: label: no column {label!r} of obs among {', '.join(known) or 'none'}")
    labels = _column(path, obs, label) if label and columns.wants_labels else None
    part = check_part(
        path.name,
        x,
        labels,
        feature_names=None if names is None else tuple(map(str, names)),
        label_source=f"obs {label!r}" if labels is not None else "",
    )
    return RawData(pick_features(part, columns))


def _sparse(path: Path, group: Any) -> Any:
    form = _text(group.attrs.get("encoding-type", group.attrs.get("h5sparse_format", "")))
    shape = np.asarray(group.attrs.get("shape", group.attrs.get("h5sparse_shape", ())))
    check_sparse_shape(path, shape)
    sparse = require("scipy.sparse", path.name)
    make = {"csr": sparse.csr_array, "csc": sparse.csc_array}.get(form.removesuffix("_matrix"))
    if make is None:
        raise DataError(
            f"{path.name}: X is {form or 'a group'!r}, neither dense nor csr_matrix or csc_matrix"
        )
    arrays = [_array(path, group[key]) for key in ("data", "indices", "indptr")]
    stored = make(tuple(arrays), shape=tuple(map(int, shape)))
    stored.check_format(full_check=True)
    return stored


def _column(path: Path, group: Any, name: str) -> np.ndarray | None:
    """A column of obs or var [N]; a group of codes and categories is categorical."""
    if name not in group:
        return None
    node = group[name]
    if hasattr(node, "shape"):
        return _array(path, node)
    codes, categories = _array(path, node["codes"]), _array(path, node["categories"])
    if codes.size and (int(codes.min()) < 0 or int(codes.max()) >= len(categories)):
        row = int(np.argmax((codes < 0) | (codes >= len(categories))))
        raise DataError(f"{path.name}: {name} of row {row} is missing")
    return categories[codes]


def _array(path: Path, dataset: Any) -> np.ndarray:
    if dataset.external or dataset.is_virtual:
        raise DataError(f"{path.name}: {dataset.name} lies in other files")
    if dataset.shape is None:
        raise DataError(f"{path.name}: {dataset.name} is empty")
    check_size(path, int(dataset.size) * dataset.dtype.itemsize, dataset.name)
    text = dataset.dtype.kind == "O"  # variable-length text, the only objects that are read
    return dataset.asstr()[...] if text else dataset[...]


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
