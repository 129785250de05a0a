"""Folders of shards: rows that need not fit in memory."""

from .folder import Shards, is_listed_folder, is_shard_folder, read_shard_folder
from .writer import ShardWriter

__all__ = ["ShardWriter", "Shards", "is_listed_folder", "is_shard_folder", "read_shard_folder"]
