"""What a run will need, estimated from a sample of its input."""
