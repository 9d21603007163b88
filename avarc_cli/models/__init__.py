"""Generators, one package per family: pure torch, no I/O."""
