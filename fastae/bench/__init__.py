"""The benchmark suite, ``fastae bench``: every figure a ratio to the bare matrix products of the same run."""
