"""Outcomes of commands, for people."""
