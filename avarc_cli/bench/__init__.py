"""Speed: avarc against plain PyTorch on one machine, in one run."""
