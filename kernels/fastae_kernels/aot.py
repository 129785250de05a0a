"""Shorthand for ``python -m fastae_kernels.tools.aot``."""

from .tools.aot import main

if __name__ == "__main__":
    raise SystemExit(main())
