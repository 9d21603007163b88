"""Speed: avarc against plain PyTorch, measured on one machine in one run."""
