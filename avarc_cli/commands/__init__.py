"""One file a command: parse, compose a few library calls, show one result. torch is imported inside."""
