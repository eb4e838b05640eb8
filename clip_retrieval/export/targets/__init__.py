"""The engines that rows are exported to, a file for each; only the one that was chosen is imported."""
