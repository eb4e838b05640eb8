"""Sizes in words, for people."""

from __future__ import annotations

UNITS = ("kB", "MB", "GB")


def in_bytes(count: float) -> str:
    """Return a size in the unit that suits it, in powers of 1000, such as 1.2 GB."""
    if count < 999.5:  # what would be rounded to 1000 is one of the next unit
        return f"{count:.0f} {'byte' if round(count) == 1 else 'bytes'}"
    for unit in UNITS:
        count /= 1000
        if count < 999.5:
            return f"{count:.0f} {unit}" if count >= 99.95 else f"{count:.1f} {unit}"
    return f"{count / 1000:,.1f} TB"
