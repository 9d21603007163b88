"""Long-running work of any kind, independent of tokens and scores.

A process takes the `locks` of a path, divides the work into `chunks`, `run`s those of its `shards`, here or on Ray,
saves each in a file, and assembles the files when all chunks are finished. Killed, it continues when run again.
"""
