"""Where tasks run: this machine, or a cluster."""
