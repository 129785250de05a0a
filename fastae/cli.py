"""The command line.

Exit codes: 0; 2 for a bad argument or file; 1 for everything else; 130 after Ctrl-C, 143 after SIGTERM.
"""

from __future__ import annotations

import difflib
import os
import sys

import tyro
from rich.console import Console

from ._version import __version__
from .commands import COMMANDS, load_command
from .ops.backend import requested_backend

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
    console, errors = Console(), Console(stderr=True, soft_wrap=True)

    def fail(message: str, code: int) -> int:
        errors.print("fastae:", style="bold red", end=" ")
        errors.print(message, markup=False, highlight=False)
        return code

    try:
        return _run(sys.argv[1:] if argv is None else argv, console, errors)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 2
    except KeyboardInterrupt as interrupt:
        how = "".join(f"; it goes on with: fastae train --resume --out {run}" for run in interrupt.args)
        return fail(f"interrupted{how}", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it exits
        return 1
    except (ValueError, TypeError, OSError) as error:
        return fail(str(error), 2)
    except (RuntimeError, MemoryError) as error:
        return fail(str(error) or "out of memory", 1)


def _run(args: list[str], console: Console, errors: Console) -> int:
    name, *rest = args or [""]
    if name in ("-V", "--version"):
        console.print(f"fastae {__version__}", highlight=False)
        return 0
    if name in ("", "-h", "--help"):
        width = max(map(len, COMMANDS))
        commands = "\n".join(f"  {command:{width}}  {summary}" for command, summary in COMMANDS.items())
        (console if name else errors).print(_HELP.format(commands=commands), markup=False, highlight=False)
        return 0 if name else 2
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise ValueError(f"{name!r} is not a command{hint} Commands: {', '.join(COMMANDS)}")
    requested_backend()
    command = load_command(name)
    config = tyro.cli(
        command.Config,
        prog=f"fastae {name}",
        args=rest,
        config=(tyro.conf.FlagCreatePairsOff,) if name == "bench" else (),
    )
    return command.run(config, console) or 0
