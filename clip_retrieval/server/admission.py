"""Which requests may be in work at once: few of them while far more arrive than can be answered."""

from __future__ import annotations

import asyncio

SECONDS_HELD = 0.1  # that a refusal waits: whoever asks again at once would take the time of those who are answered
SHARE_IN_OVERLOAD = 32  # of `most` may be busy then: 2 of 64 answer as many a second as 8 do, in a third of the time
SECONDS_BUSY = 0.5  # after which a request keeps nobody out: it waits for a disk, an address or a long search


class Admission:
    """Counts requests with a body.

    Refusals that are held back tell how many would ask at once. While these are more than may be in work, waiting helps
    nobody: whoever is let in would only be answered later. So few may be busy at a time, until there is room for all.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.most_busy = max(1, most // SHARE_IN_OVERLOAD)  # while there is too much to do
        self.in_work = 0
        self.busy = 0  # of these, those whose body has arrived, and which have not taken long
        self.held = 0  # refusals that wait
        self.is_overloaded = False

    def has_room(self) -> bool:
        if self.held > self.most:
            self.is_overloaded = True
        elif self.held + self.in_work <= self.most:
            self.is_overloaded = False
        return self.in_work < self.most and not (self.is_overloaded and self.busy >= self.most_busy)

    def enter(self) -> bool:
        """Count a request in, and return True; return False where it has to be refused."""
        has_room = self.has_room()
        self.in_work += has_room
        return has_room

    def leave(self) -> None:
        self.in_work -= 1

    async def hold(self) -> None:
        """Wait as a refusal does."""
        self.held += 1
        try:
            await asyncio.sleep(SECONDS_HELD)
        finally:
            self.held -= 1


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
