"""Everything that turns pictures and texts into embeddings; the only place that imports torch."""
