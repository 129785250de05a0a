"""The commands of the command line, one module each.

A command is a module with a frozen dataclass ``Config``, whose fields are its options (see
:mod:`.options`), and a function ``run(config, console)``, which returns the exit code or ``None`` for 0. A
row of ``COMMANDS`` adds it. ``EXAMPLES`` are command lines for its help. Where a screen is too small for all
options, ``ESSENTIAL`` has the names of those to show by default, by heading. ``ABOUT`` is the first line of
the help, instead of the docstring of ``Config``. A module with commands of its own has ``CONFIGS``, classes
by name, in place of ``Config``.
"""

from __future__ import annotations

import importlib
from typing import Any

COMMANDS = {
    "train": "Train a stack of autoencoders.",
    "encode": "Write the codes of a data set to a file.",
    "evaluate": "Measure a trained stack.",
    "score": "Write anomaly scores of rows to a file.",
    "reconstruct": "Write reconstructions of rows to a file.",
    "plot": "Draw a trained stack.",
    "convert": "Write the last checkpoint of a run in one file.",
    "sae": "Train, encode, evaluate, draw and convert dictionaries of sparse codes.",
    "estimate": "Predict memory, traffic and least time of a run.",
    "bench": "Measure fastae beside PyTorch on this machine.",
    "tune": "Find the fastest plans of this machine's GPU.",
    "info": "Show versions, devices and backends.",
}
"""The summary of each command, by the name of its module."""


def load_command(name: str) -> Any:
    """The module of a command."""
    return importlib.import_module(f"{__name__}.{name}")
