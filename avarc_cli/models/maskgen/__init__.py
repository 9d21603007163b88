"""MaskGen: masked generators of tokens without a position, conditioned on a caption (arXiv:2501.07730)."""
