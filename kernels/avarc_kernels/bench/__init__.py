"""Is each kernel right, and is it fast? `python -m avarc_kernels.bench`; one file an op."""
