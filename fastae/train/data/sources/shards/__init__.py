"""Folders of shards: rows that need not fit in memory."""

from .folder import Shards, is_shard_folder, read_shard_folder
from .writer import ShardWriter

__all__ = ["ShardWriter", "Shards", "is_shard_folder", "read_shard_folder"]
