"""LlamaGen: a decoder-only transformer over raster-ordered tokens (arXiv:2406.06525)."""
