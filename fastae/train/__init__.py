"""Training of stacks: data, configuration, the engine, checkpoints, evaluation."""

from ..errors import CheckpointError, DataError, TrainingError
from .checkpoint import Checkpoint, load_checkpoint
from .collect import collect
from .config import Stage, TrainConfig
from .data import Dataset, Shards, ShardWriter, dataset_from_arrays, dataset_from_iterator, load_dataset
from .engine import TrainResult, train
from .estimate import Estimate, StageEstimate, estimate
from .evaluation import encode_rows, evaluate
from .reporting import LineProgress, Progress, RichProgress
from .step import TrainingStep

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "DataError",
    "Dataset",
    "Estimate",
    "LineProgress",
    "Progress",
    "RichProgress",
    "ShardWriter",
    "Shards",
    "Stage",
    "StageEstimate",
    "TrainConfig",
    "TrainResult",
    "TrainingError",
    "TrainingStep",
    "collect",
    "dataset_from_arrays",
    "dataset_from_iterator",
    "encode_rows",
    "estimate",
    "evaluate",
    "load_checkpoint",
    "load_dataset",
    "train",
]
