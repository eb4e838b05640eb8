"""The npy files of an embeddings folder: read, written, fetched."""
