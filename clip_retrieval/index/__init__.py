"""Embeddings to nearest-neighbor indices."""
