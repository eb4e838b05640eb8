"""A stranger's url within limits, and many of them at once."""
