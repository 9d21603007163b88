"""MaskGIT's image tokenizer: a VQGAN of convolutions alone (arXiv:2202.04200), which RAR reads."""
