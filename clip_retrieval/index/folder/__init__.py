"""What stands beside an index file, and whether it may be written."""
