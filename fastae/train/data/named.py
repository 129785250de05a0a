"""Data sets by name: scikit-learn's digits, and downloads that are checked by SHA-256."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from ...errors import DataError, one_line
from ...optional import require
from .parts import RawData, check_part
from .sources import read_source
from .sources.idx import IDX_FILES


class Download(NamedTuple):
    """Four gzipped IDX files.

    Attributes:
        base_url: what their names are appended to.
        sha256: of the files, in the order of ``IDX_FILES``.
        installed: where Debian's package of the data set puts them.
    """

    base_url: str
    sha256: tuple[str, ...]
    installed: Path | None = None


DOWNLOADS = {
    "mnist": Download(
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        (
            "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        ),
    ),
    "fashion-mnist": Download(
        "https://storage.googleapis.com/tensorflow/tf-keras-datasets/",
        (
            "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        ),
        Path("/usr/share/datasets/fashion-mnist"),
    ),
}
NAMES = ("digits", *DOWNLOADS)


def read_named(name: str, cache_dir: Path | None = None, *, download: bool = True) -> RawData:
    """Read one of ``NAMES``.

    Args:
        name: of the data set.
        cache_dir: where downloads are kept; None for the user's cache folder.
        download: whether a missing file may be downloaded.

    Raises:
        DataError: the files could not be downloaded or read.
    """
    if name == "digits":
        return _read_digits()
    return read_source(_downloaded(name, cache_dir, download))


def cache_folder(name: str) -> Path:
    """The folder below the user's cache that a named data set is downloaded to."""
    return Path(require("pooch", name).os_cache("fastae")) / name


def _read_digits() -> RawData:
    x, labels = require("sklearn.datasets", "digits").load_digits(return_X_y=True)
    train, test = require("sklearn.model_selection", "digits").train_test_split(
        np.arange(len(x)), test_size=297, stratify=labels, random_state=0
    )
    train, test = (
        check_part("digits", x[rows].reshape(-1, 8, 8), labels[rows])
        for rows in (np.sort(train), np.sort(test))
    )
    return RawData(train, test)


def _downloaded(name: str, cache_dir: Path | None, may_download: bool) -> Path:
    """The folder with the four IDX files of a named data set."""
    download = DOWNLOADS[name]
    if download.installed is not None and download.installed.is_dir():
        return download.installed
    pooch = require("pooch", name)
    files = [f"{file}.gz" for file in IDX_FILES]
    folder = cache_folder(name) if cache_dir is None else cache_dir / name
    if not may_download and not all((folder / file).is_file() for file in files):
        raise DataError(f"{name}: is not downloaded yet; give its name as the data to download it")
    registry = {file: f"sha256:{digest}" for file, digest in zip(files, download.sha256, strict=True)}
    fetcher = pooch.create(path=folder, base_url=download.base_url, registry=registry)
    try:
        for file in files:
            fetcher.fetch(file)
    except (OSError, ValueError) as error:  # requests' errors are OSErrors; a wrong checksum is a ValueError
        raise DataError(
            f"{name}: download failed; give the path of a folder with {', '.join(files)}, or use 'digits'"
            f" ({one_line(error)})"
        ) from error
    return folder
