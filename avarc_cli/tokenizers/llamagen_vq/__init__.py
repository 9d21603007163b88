"""LlamaGen's image tokenizer: a VQGAN with a codebook of unit vectors (arXiv:2406.06525, section 2.1)."""
