"""The configuration of a run that goes on: what it keeps, and what it takes anew."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from .checkpoint import find_checkpoint, read_config
from .config import TrainConfig, differing, warn_of_kept
from .folder import folder_of_launch, has_checkpoint

_FREE = ("out", "resume", "device", "memory_gib", "checkpoint_seconds", "timeout")
"""Options that a resumed run takes anew."""
_FREE_ONCE_GIVEN = ("classifier", "shard", "shard_size")
"""Options that a resumed run takes anew where they are not the defaults."""


def of_launch(config: TrainConfig) -> TrainConfig:
    """The configuration of a run, which goes on where its processes were started again."""
    folder = None if config.resume else folder_of_launch(config.out)
    if folder is None:
        return config
    return replace(config, out=str(folder), resume=has_checkpoint(folder))


def resumed(config: TrainConfig, folder: Path, given: Collection[str] | None) -> TrainConfig:
    """The configuration of the run in a folder, with what a resumed run may choose anew.

    These are the options in ``_FREE`` and ``_FREE_ONCE_GIVEN``, and more epochs for a stage.
    """
    values = read_config(folder)
    try:
        kept = TrainConfig.from_dict(values)
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, OverflowError) as error:
        raise CheckpointError(f"{find_checkpoint(folder) / 'config.json'}: train.{error}") from error
    own, asked, ignored = flat(kept), flat(config), []
    for name in differing(asked, own, flat(TrainConfig()), given):
        value = asked[name]
        if name in _FREE:
            continue
        stage, _, setting = name.partition(".")
        if setting == "epochs" and (value or 0) > (own[name] or 0):
            kept = replace(kept, **{stage: replace(getattr(kept, stage), epochs=value)})
        elif name in _FREE_ONCE_GIVEN and (value or name != "classifier"):  # which it may only gain
            kept = replace(kept, **{name: value})
        else:
            ignored.append(name)
    warn_of_kept(ignored, stacklevel=3)
    return replace(kept, **{name: getattr(config, name) for name in _FREE})


def flat(config: TrainConfig) -> dict[str, Any]:
    """The options of a configuration by name, those of its stages as ``<stage>.<name>``."""
    options = {f.name: getattr(config, f.name) for f in fields(config)}
    for stage, settings in config.stages.items():
        del options[stage]
        options |= {f"{stage}.{f.name}": getattr(settings, f.name) for f in fields(settings)}
    return options
