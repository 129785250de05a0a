"""Device code: what runs inside a kernel, and the kernels."""
