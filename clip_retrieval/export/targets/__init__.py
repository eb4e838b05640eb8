"""The engines that rows are exported to, one file each; only the chosen one is imported."""
