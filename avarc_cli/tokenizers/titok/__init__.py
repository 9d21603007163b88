"""TiTok, image tokenizers whose tokens describe the image as a whole and have no position in it (arXiv:2406.07550)."""
