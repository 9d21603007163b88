"""Frozen networks whose view of two images says how different they look."""
