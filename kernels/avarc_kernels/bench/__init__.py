"""Checks and times every kernel: `python -m avarc_kernels.bench`. One file per operation."""
