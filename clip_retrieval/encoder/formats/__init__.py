"""Weights in many formats, read without torch into one form: the Checkpoint."""
