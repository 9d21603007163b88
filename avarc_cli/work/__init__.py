"""Long-running work of any kind, independent of tokens and scores.

A process locks a path (`locks`) and divides the work into chunks (`chunks`), of which it computes its share (`shards`)
here, in processes on several devices, or on Ray (`run`, `workers`). Each result is saved in a file, and the caller
assembles the files when all are there.
"""
