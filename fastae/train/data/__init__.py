"""Training data as rows: data sets by name, path or from arrays, their scaling, and float32 reads.

Importing this package needs none of the optional packages.
"""

from .dataset import Dataset, dataset_from_arrays, load_dataset
from .rows import Rows, split
from .scaling import AffineScaling, Scaling
from .sources.shards import Shards, ShardWriter
from .stream import dataset_from_iterator

__all__ = [
    "AffineScaling",
    "Dataset",
    "Rows",
    "Scaling",
    "ShardWriter",
    "Shards",
    "dataset_from_arrays",
    "dataset_from_iterator",
    "load_dataset",
    "split",
]
