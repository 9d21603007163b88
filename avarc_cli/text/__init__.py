"""Captions: how they are read, and what text encoders make of them."""
