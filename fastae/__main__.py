"""``python -m fastae`` and the command ``fastae``."""

import atexit
import sys

from .interruption import handled, ignore_signals, leave


def main() -> int:
    """Run the command line, or say what it needs; returns the exit code."""
    with handled(leave):
        try:
            from .cli import main as run

            return run()
        except ModuleNotFoundError as error:
            package = (error.name or "").partition(".")[0]
            if package in ("", "fastae"):
                raise
            print(f'fastae: {package} is not installed: pip install "fastae[train]"', file=sys.stderr)
            return 1
        finally:
            atexit.register(ignore_signals)  # all is done; registered last, it is the first to be called


if __name__ == "__main__":
    sys.exit(main())
