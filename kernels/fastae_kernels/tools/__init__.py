"""Command-line tools and counts beside the kernels: ahead-of-time compilation, tuning, cost."""
