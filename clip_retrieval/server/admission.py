"""Which requests may be in progress at once: the more have to be refused, the fewer are let in."""

from __future__ import annotations

import asyncio

SECONDS_HELD = 0.1  # that a refusal waits: clients that retry at once would slow down the requests in progress
LEAST_SHARE = 32  # divisor: at least `most` / 32 requests may be busy, 2 of 64
HELD_SHARE = 4  # divisor: up to `most` / 4 held refusals change nothing
SECONDS_BUSY = 0.5  # after which a request no longer counts: it waits for a disk, an address or a long search


class Admission:
    """Counts requests with a body.

    The number of held refusals shows how many requests there would be at once. The more there are, the less waiting
    helps: requests that are let in would only be answered later. So the more are held, the fewer may be busy. With
    `most` 64 and 16 held, all 64 may; with 64 held, 16, which answer nearly as many per second; with 512 held, 2, which
    are answered as if alone.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.least = max(1, most // LEAST_SHARE)
        self.in_work = 0
        self.busy = 0  # of these, requests whose body has arrived, and which have not taken long
        self.held = 0  # refusals that wait

    def has_room(self) -> bool:
        is_calm = self.busy * self.held * HELD_SHARE < self.most * self.most
        return self.in_work < self.most and (is_calm or self.busy < self.least)

    def enter(self) -> bool:
        """Count a request in, and return True; return False if it has to be refused."""
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
    """A request that counts as busy during the block, for at most SECONDS_BUSY."""

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
