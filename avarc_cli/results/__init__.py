"""What a classification run leaves behind: the run folder, its numbers, its exports."""
