"""Plans, the engine that carries them out, and what is read off its scores."""
