"""Networks that learn to tell an image from its reconstruction."""
