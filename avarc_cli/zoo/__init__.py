"""The models that can be loaded (cards), their files (local_files, download) and how they are read (checkpoint)."""
