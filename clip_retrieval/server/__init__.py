"""`back`: index folders behind HTTP, for clip-retrieval 2's clients and front, and under /v1 for everyone else."""
