"""A query to hits, and hits to files."""
