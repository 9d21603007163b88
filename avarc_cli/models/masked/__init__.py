"""What generators share that predict hidden tokens from visible ones, whatever their networks are."""
