"""Training of tokenizers and generators: small enough to read, large enough for the embedded model and your folder."""
