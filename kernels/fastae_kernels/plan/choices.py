"""Measured choices: what :mod:`.tune` found fastest on a device, kept as JSON, looked up by every plan.

Tables lie in two places, one file per device: the package's ``tables/``, and the user's cache,
which wins. An entry counts for one operator, dtype and layout, for every shape in the bucket of the measured
one, and only with the versions it was measured with. A table that cannot be read is ignored with a warning.
"""

from __future__ import annotations

import functools
import json
import math
import os
import re
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton

from .schedules import GemmConfig, PassConfig, Strategy

FORMAT = 2
"""Of the entries; another number when an operator's kernels or these fields change their meaning."""

SHIPPED = Path(__file__).parents[1] / "tables"


class Key(NamedTuple):
    """The key of a choice. The shape [M, K] [K, N] counts by its :attr:`bucket`; a pass has K = 0."""

    operator: str
    dtype: str
    precision: str  # of float32 products, see config.precision
    heavy: bool
    aligned: bool
    k_major: bool
    M: int
    N: int
    K: int

    @property
    def bucket(self) -> Key:
        """The key in which all shapes agree that share a choice."""
        return self._replace(M=_bucket(self.M), N=_bucket(self.N), K=_bucket(self.K))


def _bucket(size: int) -> int:
    """Half octaves around 2^(k/2): 862 to 1217 are with 1024, since each is within 19 % of it."""
    return round(2 * math.log2(size)) if size > 0 else -1


@dataclass(frozen=True)
class Choice:
    """Overrides of the heuristic's plan; all ``None``: measured, and nothing was faster."""

    strategy: Strategy | None = None
    gemm: GemmConfig | None = None
    elementwise: PassConfig | None = None


@dataclass(frozen=True)
class Entry:
    """A measured choice, the time of a call with it and with the heuristic's own plan."""

    key: Key
    choice: Choice
    seconds: float
    default_seconds: float | None  # None where that one did not run


def versions() -> dict[str, Any]:
    """Versions that an entry was measured with. The driver is left out: ptxas comes with Triton."""
    runtime = torch.version.cuda or torch.version.hip
    return {"format": FORMAT, "torch": torch.__version__, "triton": triton.__version__, "runtime": runtime}


# --- files ------------------------------------------------------------------------------------------------


def cache_folder() -> Path:
    """``FASTAE_CACHE``, or ``fastae`` in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join("~", ".cache")
    folder = os.environ.get("FASTAE_CACHE") or os.path.join(base, "fastae")
    return Path(os.path.expanduser(folder))


def paths(device: str) -> dict[str, Path]:
    """The shipped table of a device and the user's, later ones win."""
    name = re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-") + ".json"
    return {"shipped": SHIPPED / name, "cache": cache_folder() / "tables" / name}


def _read(path: Path) -> list[dict[str, Any]]:
    """A table's entries as they lie there; none, and a warning, where it cannot be read."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["entries"]
        if not all(isinstance(entry, dict) for entry in entries):
            raise TypeError("an entry is no object")
        return entries
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        reason = str(error) or type(error).__name__
        warnings.warn(f"fastae: the table of measured choices {path} is ignored: {reason}", stacklevel=2)
        return []


def _power_of_two(value: int, least: int = 1) -> bool:
    return value >= least and value & (value - 1) == 0


def _made(kind: Any, given: Any) -> Any:
    """A configuration from JSON; ``ValueError`` or ``TypeError`` where kernels could not run with it."""
    if given is None:
        return None
    made = kind(**given)
    for field in fields(kind):
        value, default = getattr(made, field.name), field.default
        if isinstance(default, float):
            continue
        if isinstance(default, bool) != isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{field.name} is {value!r}")
        if field.name.startswith("block") and not _power_of_two(value, 4 if kind is PassConfig else 16):
            raise ValueError(f"{field.name} is {value!r}")
    if not _power_of_two(made.warps) or made.warps > 32:
        raise ValueError(f"warps is {made.warps!r}")
    if kind is GemmConfig and not (
        made.stages >= 1 <= made.group and made.programs >= 1 and _power_of_two(made.subtiles)
    ):
        raise ValueError("stages, group, programs or subtiles cannot be")
    if kind is GemmConfig and made.epilogue_warps not in (0, 4, 8):
        raise ValueError(f"epilogue_warps is {made.epilogue_warps!r}")
    if (made.epilogue_tile[1] if kind is GemmConfig else made.block_n) < 16:
        raise ValueError("a tile holds less than one counter's draws")
    return made


def _entry(raw: dict[str, Any]) -> Entry:
    key, choice = Key(**raw["key"]), raw["choice"]
    if not all(type(size) is int for size in key[-3:]):
        raise TypeError(f"the shape is {key[-3:]}")
    if choice["strategy"] not in (None, "fused", "split"):
        raise ValueError(f"strategy is {choice['strategy']!r}")
    gemm, elementwise = _made(GemmConfig, choice["gemm"]), _made(PassConfig, choice["elementwise"])
    default = raw["default_seconds"]
    return Entry(
        key,
        Choice(choice["strategy"], gemm, elementwise),
        float(raw["seconds"]),
        None if default is None else float(default),
    )


def _parsed(path: Path) -> Iterator[tuple[dict[str, Any], Entry | None]]:
    """A table's entries as written, and as parsed: ``None`` for those of other versions or with errors."""
    now = versions()
    for number, raw in enumerate(_read(path)):
        if raw.get("versions") != now:
            yield raw, None
            continue
        try:
            yield raw, _entry(raw)
        except (KeyError, TypeError, ValueError) as error:
            reason = f"{type(error).__name__}: {error}"
            warnings.warn(f"fastae: entry {number} of {path} is ignored: {reason}", stacklevel=2)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Two processes that tune do not lose each other's entries."""
    import fcntl  # where Triton runs; this module may be imported elsewhere

    with open(path.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def replace_json(path: Path, content: Any) -> None:
    """Write a file at once: a kill leaves the old one or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def save(device: str, entries: Iterable[Entry]) -> Path:
    """Add entries to the user's table of a device, in place of older ones of the same buckets and versions.

    Entries of other versions stay. Plans see the change after :func:`.config.forget_choices`.
    """
    path, now, added = paths(device)["cache"], versions(), list(entries)
    replaced = {entry.key.bucket for entry in added}
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path):
        kept = [raw for raw, entry in _parsed(path) if entry is None or entry.key.bucket not in replaced]
        new = [{**asdict(entry), "key": entry.key._asdict(), "versions": now} for entry in added]
        replace_json(path, {"device": device, "entries": kept + new})
    return path


# --- lookup -----------------------------------------------------------------------------------------------


@functools.lru_cache
def table(device: str) -> dict[Key, Choice]:
    """The choices in effect on a device, by bucket."""
    found: dict[Key, Choice] = {}
    for path in paths(device).values():
        found |= {entry.key.bucket: entry.choice for _, entry in _parsed(path) if entry is not None}
    return found


def lookup(device: str, key: Key) -> Choice | None:
    """The choice for a key; ``None`` where nothing was measured."""
    choices = table(device) if device else {}
    return choices.get(key.bucket) if choices else None


def counts(device: str) -> dict[str, dict[str, Any]]:
    """By where tables lie: the path, how many entries hold, and how many are of other versions."""
    report: dict[str, dict[str, Any]] = {}
    for place, path in paths(device).items():
        holds = [entry is not None for _, entry in _parsed(path)]
        report[place] = {"path": str(path), "hold": sum(holds), "other_versions": len(holds) - sum(holds)}
    return report
