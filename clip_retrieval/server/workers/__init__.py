"""Several processes that answer on one socket: their supervisor, and the messages between them."""
