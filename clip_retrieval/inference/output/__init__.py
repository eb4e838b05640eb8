"""What a partition writes: embeddings, metadata, failures, ledger."""
