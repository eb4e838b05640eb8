"""Samples to embeddings: source, reader processes, encoder, sink."""
