"""``python -m fastae`` and the command ``fastae``."""

import sys


def main() -> int:
    """Run the command line, or say what it needs; returns the exit code."""
    try:
        from .cli import main as run
    except ImportError as error:
        print(f'fastae: {error.name} is not installed: pip install "fastae[train]"', file=sys.stderr)
        return 1
    return run()


if __name__ == "__main__":
    sys.exit(main())
