"""How long the parts of a small command took."""

from __future__ import annotations

import time


class Stopwatch:
    """Seconds from the end of one part to the end of the next."""

    def __init__(self) -> None:
        self.start = self.last = time.perf_counter()
        self.parts: list[tuple[str, float]] = []

    def end(self, part: str) -> None:
        now = time.perf_counter()
        self.parts.append((part, now - self.last))
        self.last = now

    def notes(self, verbose: int) -> list[str]:
        """Return a line with the seconds of each part; none if `verbose` is 0."""
        if verbose < 1:
            return []
        seconds = [*self.parts, ("everything", self.last - self.start)]
        return ["took " + ", ".join(f"{taken:.3f} s for {part}" for part, taken in seconds)]
