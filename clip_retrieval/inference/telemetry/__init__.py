"""What a run reports while it goes: figures, bars, metrics."""
