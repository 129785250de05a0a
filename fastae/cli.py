"""The command line.

Exit codes: 0; 2 for a bad argument or file; 1 for everything else; 130 after Ctrl-C, 143 after SIGTERM.
"""

from __future__ import annotations

import difflib
import functools
import os
import shlex
import signal
import sys
from contextlib import suppress
from typing import Any

import tyro

from ._version import __version__
from .commands import COMMANDS, load_command
from .console import Console, tolerate_encodings
from .interruption import Interrupted, Received, handled

_HELP = f"""\
usage: fastae COMMAND [OPTIONS]

Fast autoencoders on PyTorch, version {__version__}.

{{commands}}

examples:
  fastae train --data digits --sizes 64 256 128 --classifier --out runs/first
  fastae plot runs/first

fastae COMMAND --help explains a command; fastae --version prints the version."""


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    tolerate_encodings()
    received = Received()
    try:
        return _run(sys.argv[1:] if argv is None else argv, received)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 2
    except Interrupted as error:
        advice = ""
        if error.run is not None:
            advice = f"; it goes on with: fastae train --resume --out {shlex.quote(str(error.run))}"
        return _fail(f"interrupted{advice}", 128 + error.number)
    except KeyboardInterrupt:
        return _fail("interrupted", 128 + signal.SIGINT)
    except Exception as error:
        if received.number is not None:  # which some library made another error of
            return _fail("interrupted", 128 + received.number)
        return _failure(error)


def _failure(error: Exception) -> int:
    """The exit code of an error, after its message; errors that are none of ours pass."""
    if isinstance(error, BrokenPipeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it exits
        return 1
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return _fail(f"{error.filename}: {error.strerror}", 2)
    if isinstance(error, ValueError | TypeError | OSError):
        return _fail(str(error), 2)
    if isinstance(error, RuntimeError | MemoryError):
        return _fail(str(error) or "out of memory", 1)
    raise error


def _fail(message: str, code: int) -> int:
    with suppress(OSError):  # of a terminal that is gone
        errors = Console(stderr=True)
        errors.print("fastae:", style="bold red", end=" ")
        errors.print(message)
    return code


def _run(args: list[str], received: Received) -> int:
    name, *rest = args or [""]
    if name in ("-V", "--version"):
        Console().print(f"fastae {__version__}")
        return 0
    if name in ("", "-h", "--help"):
        width = max(map(len, COMMANDS))
        commands = "\n".join(f"  {command:{width}}  {summary}" for command, summary in COMMANDS.items())
        Console(stderr=not name).print(_HELP.format(commands=commands))
        return 0 if name else 2
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise ValueError(f"{name!r} is not a command{hint} Commands: {', '.join(COMMANDS)}")
    command = load_command(name)
    from .ops.backend import requested_backend  # with torch, which the command has loaded

    requested_backend()
    with handled(received):
        options: dict[str, Any] = {"prog": f"fastae {name}"}
        if name == "bench":
            options["config"] = (tyro.conf.FlagCreatePairsOff,)
        parse = getattr(command, "parse", functools.partial(tyro.cli, command.Config))
        config = parse(args=rest, **options)
        return command.run(config, Console()) or 0
