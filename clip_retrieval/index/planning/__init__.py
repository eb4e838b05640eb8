"""Which kind of index fits the bounds: pure functions."""
