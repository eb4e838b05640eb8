"""An embeddings folder to a better one: duplicates, labels, choices, a report."""
