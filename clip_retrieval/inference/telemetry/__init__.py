"""What a run tells of itself while it goes: figures, bars, metrics."""
