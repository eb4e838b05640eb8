"""Embeddings to nearest-neighbour indices, and searching them."""
