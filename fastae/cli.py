"""The command line.

Exit codes: 0; 2 for a bad argument or file; 1 for everything else; 130 after Ctrl-C, 143 after SIGTERM.
"""

from __future__ import annotations

import difflib
import inspect
import os
import shlex
import signal
import sys
import warnings
from collections.abc import Iterable, Mapping
from contextlib import suppress
from types import ModuleType
from typing import Any

from ._version import __version__
from .commands import COMMANDS, load_command
from .console import Console, tolerate_encodings
from .errors import one_line
from .interruption import Interrupted, Received, handled

_EXAMPLES = """\
examples:
  fastae train digits --hidden 256 16 --classifier --out runs/first
  fastae plot runs/first

"""


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    tolerate_encodings()
    received = Received()
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _warn
            code = _run(sys.argv[1:] if argv is None else argv, received)
        print(end="", flush=True)  # here a reader that went away can still be told from other errors
        return code
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 2
    except Interrupted as error:
        if getattr(error, "elsewhere", False):
            return 128 + error.number
        advice = ""
        if error.run is not None:
            advice = f"; it goes on with: fastae {error.command} --resume --out {shlex.quote(str(error.run))}"
        return _fail(f"interrupted{advice}", 128 + error.number)
    except KeyboardInterrupt:
        return _fail("interrupted", 128 + signal.SIGINT)
    except Exception as error:
        if received.number is not None:  # which some library made another error of
            return _fail("interrupted", 128 + received.number)
        return _failure(error)


def _warn(message: Warning | str, category: type[Warning], filename: str, lineno: int, *rest: Any) -> None:
    """Print a warning as one line, without the place in the code that gives it."""
    with suppress(OSError):
        Console(stderr=True).print(f"fastae: {one_line(message)}", style="yellow")


def _failure(error: Exception) -> int:
    """The exit code of an error, after its message; errors that are none of ours pass.

    Another process of the run reports an error that came ``elsewhere``.
    """
    if isinstance(error, BrokenPipeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it exits
        return 1
    if isinstance(error, OSError) and error.strerror:
        what = "output" if error.filename is None else error.filename
        return _fail(f"{what}: {error.strerror}", 2)
    told = getattr(error, "elsewhere", False)
    if isinstance(error, ValueError | TypeError | OSError):
        return _fail("" if told else str(error), 2)
    if isinstance(error, RuntimeError | MemoryError):
        return _fail("" if told else str(error) or "out of memory", getattr(error, "exit_code", 1))
    raise error


def _fail(message: str, code: int) -> int:
    if not message:
        return code
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
        return _overview("fastae", COMMANDS, asked=bool(name))
    if name not in COMMANDS:
        raise ValueError(_not_a_command(name, COMMANDS))
    command = load_command(name)
    from .ops.backend import requested_backend  # with torch, which the command has loaded

    requested_backend()
    with handled(received):
        return _run_command(command, f"fastae {name}", rest)


def _run_command(command: ModuleType, prog: str, args: list[str]) -> int:
    """Run a command's module, or print its help."""
    from .commands.help import command_help
    from .commands.options import parse

    configs: dict[str, type] = getattr(command, "CONFIGS", {})
    if configs and (not args or args[0] not in configs):
        if args and not args[0].startswith("-"):
            raise ValueError(_not_a_command(args[0], configs))
        summaries = {
            name: (inspect.getdoc(config) or "").partition("\n")[0] for name, config in configs.items()
        }
        return _overview(prog, summaries, asked=bool(args))
    if configs:
        prog, config, args = f"{prog} {args[0]}", configs[args[0]], args[1:]
    else:
        config = command.Config
    if asked := {"-h", "--help", "--help-all"} & set(args):
        Console().print(command_help(command, config, prog, everything="--help-all" in asked))
        return 0
    return command.run(parse(config, args, prog), Console()) or 0


def _overview(prog: str, summaries: Mapping[str, str], asked: bool) -> int:
    """Print the commands; returns the exit code, which is 2 where no command was given."""
    width = max(map(len, summaries))
    commands = "\n".join(f"  {name:{width}}  {summary}" for name, summary in summaries.items())
    about = f"Fast autoencoders on PyTorch, version {__version__}.\n\n" if prog == "fastae" else ""
    more = "; fastae --version prints the version" if about else ""
    Console(stderr=not asked).print(
        f"usage: {prog} COMMAND [OPTIONS]\n\n{about}commands:\n{commands}\n\n{_EXAMPLES if about else ''}"
        f"{prog} COMMAND --help explains a command{more}."
    )
    return 0 if asked else 2


def _not_a_command(name: str, commands: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, commands, n=1)
    hint = f"; did you mean {close[0]}?" if close else "."
    return f"{name!r} is not a command{hint} Commands: {', '.join(commands)}"
