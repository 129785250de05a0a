"""Files of data sets, as tests write and refuse them."""

import gzip
import os
import re
import struct
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pooch")

from fastae.errors import DataError
from fastae.train.data import AffineScaling
from fastae.train.data.named import cache_folder

ROOT = Path(__file__).parents[2]
MNIST = Path(os.environ["FASTAE_MNIST"]) if "FASTAE_MNIST" in os.environ else cache_folder("mnist")
needs_mnist = pytest.mark.skipif(
    not MNIST.is_dir(),
    reason=f"needs MNIST: set FASTAE_MNIST to a folder of its files, or download it to {MNIST}",
)
IDENTITY = AffineScaling("none", np.zeros(()), np.ones(()))


def write_idx(path: Path, array: np.ndarray, code: int = 0x08) -> Path:
    content = struct.pack(f">BBBB{array.ndim}I", 0, 0, code, array.ndim, *array.shape)
    content += array.astype(array.dtype.newbyteorder(">")).tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def write_idx_folder(folder: Path, suffix: str = ".gz") -> dict[str, np.ndarray]:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    arrays = {
        "train-images-idx3-ubyte": rng.integers(0, 256, (6, 4, 3), np.uint8),
        "train-labels-idx1-ubyte": np.array([0, 1, 2, 0, 1, 2], np.uint8),
        "t10k-images-idx3-ubyte": rng.integers(0, 256, (2, 4, 3), np.uint8),
        "t10k-labels-idx1-ubyte": np.array([3, 0], np.uint8),
    }
    for name, array in arrays.items():
        write_idx(folder / f"{name}{suffix}", array)
    return arrays


def save_npy(path: Path, array: np.ndarray) -> str:
    np.save(path, array)
    return str(path)


def refuses(start: str, *words: str):
    """A DataError of one line that begins with `start` and holds every one of `words`."""
    return pytest.raises(
        DataError, match=f"^{re.escape(start)}" + "".join(f".*{re.escape(w)}" for w in words) + r".*\Z"
    )
