"""The queue of partitions: a free worker takes the next one."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Sequence

MOST_TRIES = 2  # a partition that two workers died of is given up


class Handout:
    """Hands each partition to one worker, and to another one if that died. Safe to use from any thread."""

    def __init__(self, partition_ids: Sequence[int]) -> None:
        self.waiting = deque(partition_ids)
        self.under_way: set[int] = set()
        self.tries: Counter[int] = Counter()
        self.given_up: list[int] = []
        self.is_closed = False
        self.changed = threading.Condition()

    def take(self) -> int | None:
        """Return the next partition; None when there is none and no worker is left that may give one back."""
        with self.changed:
            while not self.waiting and self.under_way and not self.is_closed:
                self.changed.wait()
            if not self.waiting or self.is_closed:
                return None
            partition_id = self.waiting.popleft()
            self.under_way.add(partition_id)
            self.tries[partition_id] += 1
            return partition_id

    def finish(self, partition_id: int) -> None:
        with self.changed:
            self.under_way.remove(partition_id)
            self.changed.notify_all()

    def give_back(self, partition_id: int) -> None:
        """Return a partition to the queue after its worker died."""
        with self.changed:
            self.under_way.remove(partition_id)
            if self.tries[partition_id] < MOST_TRIES:
                self.waiting.appendleft(partition_id)
            else:
                self.given_up.append(partition_id)
            self.changed.notify_all()

    def close(self) -> None:
        """Stop handing out partitions."""
        with self.changed:
            self.is_closed = True
            self.changed.notify_all()

    def left(self) -> list[int]:
        """Return the partitions that were not made."""
        with self.changed:
            return sorted([*self.waiting, *self.under_way, *self.given_up])
