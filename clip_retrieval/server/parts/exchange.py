"""A request to several parts at once: which answered, which are missing, and which refusal applies to the whole."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus

from clip_retrieval.server.builds import Missing
from clip_retrieval.server.messages import HttpError, StaleError
from clip_retrieval.server.parts.connections import Reply
from clip_retrieval.server.parts.layout import Layout
from clip_retrieval.server.parts.link import Call, Link, RebuiltError, UnansweredError


@dataclass(frozen=True)
class Exchange:
    """The parts of one build of an index, and how to look for a newer one."""

    layout: Layout
    links: tuple[Link, ...]
    refresh: Callable[[], Awaitable[None]]

    async def ask(self, calls: Mapping[int, Call]) -> tuple[dict[int, Reply], list[Missing]]:
        """Send each part its request; return the answers by the place of the part, and the parts that have none.

        Raises HttpError if a part refuses the request or is too busy, StaleError if one was rebuilt.
        """
        tasks = [self.links[place].ask(call) for place, call in calls.items()]
        outcomes = dict(zip(calls, await asyncio.gather(*tasks, return_exceptions=True), strict=True))
        errors = {place: outcome for place, outcome in outcomes.items() if isinstance(outcome, BaseException)}
        self.raise_first(errors, len(calls))
        missing = [self.missing(place, str(error)) for place, error in errors.items()]
        replies = {place: outcome for place, outcome in outcomes.items() if not isinstance(outcome, BaseException)}
        return replies, missing

    def raise_first(self, errors: Mapping[int, BaseException], asked: int) -> None:
        """Raise the first error that concerns more than one part."""
        if any(isinstance(error, RebuiltError) for error in errors.values()):
            raise StaleError(self.refresh)
        refused = {place: error for place, error in errors.items() if not isinstance(error, UnansweredError)}
        for place, error in refused.items():
            if isinstance(error, HttpError) and error.status == HTTPStatus.BAD_REQUEST and len(refused) < asked:
                raise HttpError(error.status, f"{self.links[place].name}: {error.message}")
            raise error

    def missing(self, place: int, problem: str) -> Missing:
        link, first_ids = self.links[place], self.layout.first_ids
        link.figures.count_missing(link.number)
        return Missing(link.number, first_ids[place], first_ids[place + 1] - first_ids[place], problem)

    def within(self, place: int, partial: Sequence[Missing]) -> list[Missing]:
        """Return the missing parts of a part that is itself in parts, with our ids."""
        link, first_id = self.links[place], self.layout.first_ids[place]
        return [
            Missing(link.number, first_id + one.first_id, one.rows, f"its part {one.part}: {one.problem}")
            for one in partial
        ]

    def unanswered(self, missing: Sequence[Missing]) -> HttpError:
        """Return the error for the case that none of the asked parts has answered."""
        told = "; ".join(f"part {part.part}: {part.problem}" for part in missing)
        return HttpError(
            HTTPStatus.SERVICE_UNAVAILABLE, f"no part of {self.layout.name} that was asked answers ({told})"
        )
