"""The command line: ``python -m benchmarks.papers RECIPE``.

Exit codes: 0; 2 for a bad argument or file; 1 for everything else.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
from rich.console import Console

from fastae.commands.help import command_help
from fastae.commands.options import parse
from fastae.tensors import Products
from fastae.train.config import POSITIONAL

from . import makhzani2013, rifai2011, sdae, spiral, ufldl
from .protocol import Recipe, run
from .tables import line, show

RECIPES: dict[str, Recipe] = {
    "rifai2011": rifai2011.TABLE_1,
    "rifai2011-basic": rifai2011.TABLE_2,
    "sdae": sdae.TABLE,
    "makhzani2013": makhzani2013.TABLE,
    "ufldl": ufldl.TABLE,
    "spiral": spiral.TABLE,
}


@dataclass(frozen=True)
class Command:
    """Train a table of the literature again and print ours beside theirs.

    Attributes:
        recipe: Name of the table: rifai2011, rifai2011-basic, sdae, makhzani2013, ufldl or spiral.
        data: MNIST by name or as a folder of its IDX files; digits is a fast smoke run with everything scaled
            down. Not for spiral, which makes its own.
        seeds: Seeds. Each trains every row once; the table shows means and standard deviations.
        rows: Names of the rows to train. By default all.
        budget: Minutes after which no further training is started; a second run continues there.
        out: The JSON file of the results, by default runs/papers/<recipe>-<data>.json. Results that it
            already holds are not trained again.
        validate: Measure on a sixth of the training rows, held out, and leave the test part unread.
        set: Settings of all rows, as in supervised.stage.lr=0.003, with validate.
        products: Precision of float32 products, as in torch.set_float32_matmul_precision.
    """

    recipe: Annotated[
        Literal["rifai2011", "rifai2011-basic", "sdae", "makhzani2013", "ufldl", "spiral"],
        POSITIONAL,
    ]
    data: str | None = None
    seeds: tuple[int, ...] = (0, 1, 2)
    rows: tuple[str, ...] = ()
    budget: float = float("inf")
    out: Path | None = None
    validate: bool = False
    set: tuple[str, ...] = ()
    products: Products = "highest"


def main(argv: list[str] | None = None) -> int:
    """Run one recipe; returns the exit code."""
    console = Console()

    def fail(message: str, code: int) -> int:
        Console(stderr=True, soft_wrap=True).print(f"papers: {message}", markup=False, highlight=False)
        return code

    try:
        args, prog = sys.argv[1:] if argv is None else argv, "python -m benchmarks.papers"
        if {"-h", "--help"} & set(args):
            print(command_help(None, Command, prog, everything=True))
            return 0
        command = parse(Command, args, prog)
        torch.set_float32_matmul_precision(command.products)
        recipe = RECIPES[command.recipe]
        name = Path(command.data or "own").name + ("-validation" if command.validate else "")
        out = command.out or Path("runs/papers") / f"{command.recipe}-{name}.json"
        report = run(
            recipe, command.data, out, seeds=command.seeds, rows=command.rows, budget=command.budget,
            validate=command.validate, changes=command.set,
            finished=lambda result: console.print(line(result), highlight=False, markup=False),
        )  # fmt: skip
        show(console, report)
        console.print(f"Results: {out}", highlight=False, markup=False, soft_wrap=True)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 2
    except KeyboardInterrupt:
        return fail("interrupted; the same command goes on with what is not finished", 1)
    except (ValueError, TypeError, OSError) as error:
        return fail(str(error), 2)
    except (RuntimeError, MemoryError) as error:
        return fail(str(error) or "out of memory", 1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
