"""VAR's multi-scale VQ-VAE (arXiv:2404.02905, section 3)."""
