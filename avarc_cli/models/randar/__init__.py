"""RandAR: LlamaGen's transformer over tokens in any order, each asked for by its position (arXiv:2412.01827)."""
