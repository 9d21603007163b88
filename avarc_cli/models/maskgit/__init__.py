"""MaskGIT: masked generators of tokens without a position, conditioned on a class (arXiv:2202.04200, 2406.07550)."""
