"""Several processes that answer at one socket: one that supervises them, and what they tell each other."""
