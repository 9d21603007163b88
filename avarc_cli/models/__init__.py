"""The networks, one module each: pure torch, no files, each with `from_state_dict`."""
