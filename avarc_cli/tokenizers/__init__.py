"""Image tokenizers, one network per file: pure torch, no I/O."""
