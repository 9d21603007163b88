"""Long-running work of any kind: chunks, locks, shards, Ray. Independent of tokens and scores."""
