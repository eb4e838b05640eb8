"""The small commands: similarity, zero-shot labels, plain files of embeddings, accuracy, models."""
