"""Fetches untrusted urls within limits, many at once."""
