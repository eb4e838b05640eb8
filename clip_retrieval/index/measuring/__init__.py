"""Measures an index's recall and speed, and chooses its search settings."""
