"""`python -m clip_retrieval`: the same as the command `clip-retrieval`."""

from clip_retrieval.cli import main

if __name__ == "__main__":
    main()
