"""Embeddings to nearest-neighbor indices, and searching them."""
