"""RAR: a decoder-only transformer over tokens in any order (arXiv:2411.00776)."""
