"""Folders that are changed later: --update and --retry_failed."""
