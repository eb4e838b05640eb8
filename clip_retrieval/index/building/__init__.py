"""Training, filling and merging: vectors to an index file."""
