"""VAR, the visual autoregressive transformer (arXiv:2404.02905)."""
