"""A file of results: what was measured, on what machine, with which versions. Written after every case."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from .._version import __version__
from ..files import write_whole
from ..tensors import float32_products
from .providers import FLOOR

FORMAT = 1

Times = dict[str, float]
"""median, low, high (quartiles) in seconds, and rounds."""


@dataclass
class CaseResult:
    """One piece of work at one shape.

    Attributes:
        group, dtype, shape: what was measured; the shape as in 256x784x1000, or a run in words.
        tolerance: the largest error that gets a ratio.
        asked: providers that were to be measured; operators have themselves measured in their place.
        seconds: how long it was to be measured.
        times: by mode and provider; of one that is wrong or not available there are none.
        errors: of every provider that ran, against float64.
        notes: why a provider was not measured.
        peak_bytes: of the last mode.
        called: seconds of a call from Python, launches included (GPU only).
        cost: [bytes, operations] of the bare products, by mode; of an operator, by its name.
        least: of operators, the seconds of their cost at the machine's peaks.
        rows: of providers that work on some of the rows, whose times are scaled to all.
        losses: final losses of each layer of a whole run.
        out_of_time: whether something was left out for want of time.
    """

    group: str
    dtype: str
    shape: str
    tolerance: float
    asked: list[str]
    seconds: float
    times: dict[str, dict[str, Times]] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    peak_bytes: dict[str, int] = field(default_factory=dict)
    called: dict[str, dict[str, float]] = field(default_factory=dict)
    cost: dict[str, list[int]] = field(default_factory=dict)
    least: dict[str, float] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)
    losses: dict[str, list[float]] = field(default_factory=dict)
    out_of_time: bool = False

    @property
    def key(self) -> str:
        return f"{self.group} {self.dtype} {self.shape}"

    def is_wrong(self, provider: str) -> bool:
        """True if the provider's error is above the tolerance, or nan."""
        return provider in self.errors and not self.errors[provider] <= self.tolerance

    @property
    def bad(self) -> dict[str, str]:
        """Reasons by provider, for those that are wrong or failed, not for those that cannot run here."""
        said = {name: note for name, note in self.notes.items() if note.startswith("failed")}
        return said | {
            name: f"off by {error:.1e}, more than {self.tolerance:.0e}"
            for name, error in self.errors.items()
            if self.is_wrong(name)
        }

    def ratio(self, mode: str, provider: str, part: str = "median") -> float | None:
        """A provider's time over the floor's median, an operator's over its least time.

        None unless both are known and it is right.
        """
        times = self.times.get(mode, {})
        floor = self.least.get(provider) or times.get(FLOOR, {}).get("median")
        if provider not in times or floor is None or self.is_wrong(provider):
            return None
        return times[provider][part] / floor

    def covers(self, asked: list[str], seconds: float) -> bool:
        """True if the case already holds everything that a new measurement would give."""
        return (
            not self.out_of_time
            and not self.bad
            and set(asked) <= set(self.asked)
            and seconds <= self.seconds
        )


@dataclass
class Results:
    """Everything measured on one machine with one set of versions.

    Attributes:
        head: the machine and the versions; results with another head are never added.
        clocks: what could be read when the file was begun.
        peaks: measured bytes and operations per second, by dtype.
        cases: by key.
    """

    head: dict[str, Any]
    clocks: dict[str, str] = field(default_factory=dict)
    peaks: dict[str, dict[str, float]] = field(default_factory=dict)
    cases: dict[str, CaseResult] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write the file atomically: after a kill it is the old or the new one."""
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"format": FORMAT, **asdict(self)}, indent=1, ensure_ascii=False)
        write_whole(path, text + "\n")

    @classmethod
    def load(cls, path: Path) -> Results:
        """Raises ``ValueError`` for a file that is not one of results, ``OSError`` for a missing one."""
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path}: not a file of results, or cut off ({error})") from error
        if not isinstance(values, dict) or values.pop("format", None) != FORMAT:
            raise ValueError(f"{path}: not a file of results of format {FORMAT}")
        try:
            values["cases"] = {key: CaseResult(**case) for key, case in values["cases"].items()}
            return cls(**values)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path}: something is missing or unknown in it ({error})") from error

    @property
    def groups(self) -> Iterator[tuple[str, str, list[CaseResult]]]:
        """(group, dtype, its cases), in the order in which they were measured."""
        for group, dtype in dict.fromkeys((case.group, case.dtype) for case in self.cases.values()):
            yield group, dtype, [c for c in self.cases.values() if (c.group, c.dtype) == (group, dtype)]


def differences(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """Names of the entries that differ between two heads."""
    return sorted(name for name in a.keys() | b.keys() if a.get(name) != b.get(name))


def open_results(path: Path, head: dict[str, Any]) -> tuple[Results, str | None]:
    """The results to continue, and a message if the file had another head and was renamed."""
    if not path.exists():
        return Results(head, clocks(head["device_type"])), None
    results = Results.load(path)
    if results.head == head:
        return results, None
    changed = differences(head, results.head)
    when = datetime.fromtimestamp(path.stat().st_mtime, timezone.utc).strftime("%Y%m%dT%H%M%S")
    kept = path.with_name(f"{path.stem}-{when}{path.suffix}")
    os.replace(path, kept)
    return (
        Results(head, clocks(head["device_type"])),
        f"{path} was measured with another {', '.join(changed)}; it is {kept} now",
    )


# --- the machine ----------------------------------------------------------------------------------------


def describe(device: torch.device) -> dict[str, Any]:
    """The machine and the versions, all of it JSON."""
    on_gpu = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if on_gpu else _cpuinfo("model name") or platform.machine()
    return {
        "device": name,
        "device_type": device.type,
        "memory_gib": round(_memory_bytes(device) / 2**30, 1),
        "cpu": _cpuinfo("model name") or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda if on_gpu else None,
        "triton": _version_of("triton"),
        "fastae": __version__,
        "commit": _commit(),
        "float32_products": float32_products(device.type),
    }


def clocks(device_type: str) -> dict[str, str]:
    """Clock rates, as far as this system says."""
    found = {}
    if now := _cpuinfo("cpu MHz"):
        found["cpu"] = f"{float(now):.0f} MHz"
    limit = Path("/sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq")
    if limit.exists():
        found["cpu, most"] = f"{int(limit.read_text()) // 1000} MHz"
    if device_type == "cuda" and shutil.which("nvidia-smi"):
        fields = ("clocks.sm", "clocks.max.sm", "clocks.mem", "clocks.max.mem", "power.limit")
        command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader"]
        output = subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()
        if output:
            found |= dict(zip(fields, map(str.strip, output[0].split(",")), strict=False))
    return found


def _memory_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError):  # not every system has them
        return 0


def _cpuinfo(field: str) -> str | None:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return None
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(field)), None)


def _commit() -> str | None:
    """The commit of the checkout that this file belongs to; None for an installed package."""
    here = Path(__file__).parent
    tracked = ["git", "-C", str(here), "ls-files", "--error-unmatch", "__init__.py"]
    described = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        if subprocess.run(tracked, capture_output=True, check=False).returncode:
            return None  # a folder of another repository, maybe
        return subprocess.run(described, capture_output=True, text=True, check=False).stdout.strip() or None
    except OSError:
        return None


def _version_of(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
