"""--dry_run: estimates a run's needs from a sample of its input."""
