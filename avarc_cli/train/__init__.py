"""Training of tokenizers and generators: small enough to read, large enough for the included model and your folder."""
