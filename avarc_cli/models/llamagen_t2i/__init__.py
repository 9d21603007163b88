"""Text-conditional LlamaGen: LlamaGen's transformer after a caption (arXiv:2406.06525)."""
