"""The table of docs/distributed.md: largest differences from one process, by option and kind of run.

python -m tests.distributed.equality 2 4
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.distributed.runs import config, of_one_process, trained
from tests.distributed.test_data_parallel import CASES
from tests.processes import Group

KINDS = ("data", "weights", "units")
WIDER = 15  # times as many units, or four processes would have none of some layer


def largest_difference(ours: Any, theirs: Any) -> float:
    """Of parameters, and of losses relative to their size where they are above 1."""
    (tensors, figures), (other_tensors, other_figures) = ours, theirs
    found = [float((value - other_tensors[name]).abs().max()) for name, value in tensors.items()]
    for row, other in zip(figures, other_figures, strict=True):
        numbers = [name for name, value in row.items() if isinstance(value, float)]
        found += [abs(row[name] - other[name]) / max(1.0, abs(row[name])) for name in numbers]
    return max(found)


def main(sizes: list[int]) -> None:
    groups = {size: Group(size) for size in sizes}
    columns = [(kind, size) for kind in KINDS for size in sizes]
    print("| option |", " | ".join(f"{kind}, {size}" for kind, size in columns), "|")
    print("|---|" + "---:|" * len(columns))
    try:
        for case, changes in CASES.items():
            with tempfile.TemporaryDirectory() as folder:
                alone, cells = {}, []
                for kind, size in columns:
                    settings = config(Path(folder) / kind, **changes)
                    if kind == "units":
                        width, *units = settings.sizes
                        settings = replace(settings, sizes=(width, *(WIDER * number for number in units)))
                    if settings.sizes not in alone:
                        alone[settings.sizes] = of_one_process(settings)
                    ours = replace(settings, shard=kind, out=f"{folder}/{kind}-{size}")
                    runs = groups[size].run(trained, ours)[0], alone[settings.sizes]
                    cells.append(largest_difference(*runs))
            print(f"| {case} |", " | ".join(f"{cell:.0e}" for cell in cells), "|", flush=True)
    finally:
        for group in groups.values():
            group.close()


if __name__ == "__main__":
    main([int(word) for word in sys.argv[1:]] or [2])
