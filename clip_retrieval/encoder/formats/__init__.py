"""Weights as people have them, read without torch into one form: the Checkpoint."""
