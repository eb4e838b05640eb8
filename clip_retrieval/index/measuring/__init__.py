"""How much an index finds, how fast, and with which settings."""
