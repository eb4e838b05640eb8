"""Which requests may be in work at once: few of them while most of what arrives has to be refused."""

from __future__ import annotations

import asyncio

MEMORY = 64  # requests over which the share of refused ones is averaged
OVERLOADED, CALM = 0.5, 0.25  # shares of refused requests
SHARE_IN_OVERLOAD = (
    32  # of `most` may be busy then: 2 of 64 answer as many requests a second as 8 do, in a third of the time
)
SECONDS_BUSY = 0.5  # after which a request keeps nobody out: it waits for a disk, an address or a long search


class Admission:
    """Counts requests with a body.

    While half of what arrives is refused, waiting helps nobody: whoever is let in would only be answered later. So few
    may be busy at a time, until hardly any is refused.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.most_busy = max(1, most // SHARE_IN_OVERLOAD)  # while there is too much to do
        self.in_work = 0
        self.busy = 0  # of these, those whose body has arrived, and which have not taken long
        self.refused = 0.0  # share, of late
        self.is_overloaded = False

    @property
    def is_full(self) -> bool:
        return self.in_work >= self.most or (self.is_overloaded and self.busy >= self.most_busy)

    def enter(self) -> bool:
        """Count a request in, and return True; return False where it has to be refused."""
        is_refused = self.is_full
        self.refused += (is_refused - self.refused) / MEMORY
        if self.refused > OVERLOADED:
            self.is_overloaded = True
        elif self.refused < CALM:
            self.is_overloaded = False
        self.in_work += not is_refused
        return not is_refused

    def leave(self) -> None:
        self.in_work -= 1


class Busy:
    """A request that counts as busy while the block runs, for SECONDS_BUSY at most."""

    __slots__ = ("admission", "is_counted", "timer")

    def __init__(self, admission: Admission) -> None:
        self.admission, self.is_counted = admission, True

    def __enter__(self) -> None:
        self.admission.busy += 1
        self.timer = asyncio.get_running_loop().call_later(SECONDS_BUSY, self.drop)

    def drop(self) -> None:
        if self.is_counted:
            self.is_counted = False
            self.admission.busy -= 1

    def __exit__(self, *error: object) -> None:
        self.timer.cancel()
        self.drop()
