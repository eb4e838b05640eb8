"""/healthz and /readyz: whether the threads work, and whether every index has just answered a test search."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from clip_retrieval.errors import ClipRetrievalError
from clip_retrieval.server.asking import Asker
from clip_retrieval.server.builds import Build
from clip_retrieval.server.messages import HttpError, Request, Response, json_response
from clip_retrieval.server.served import Indices
from clip_retrieval.server.workers.team import Team

SECONDS_OF_AN_ANSWER = 1.0  # for which an answer of /readyz is kept
SECONDS_OF_A_PROBE = 10.0


@dataclass(frozen=True)
class Probe:
    """The outcome of a test search in an index: a problem, or parts that did not answer."""

    name: str
    problem: str = ""
    missing: Mapping[str, str] = field(default_factory=dict)


class Health:
    """The state of one server."""

    def __init__(self, indices: Indices, asker: Asker, stuck_after: float, team: Team | None = None) -> None:
        self.indices, self.asker, self.stuck_after, self.team = indices, asker, stuck_after, team
        self.checked_at, self.probes = -SECONDS_OF_AN_ANSWER, [Probe("server", "has just started")]
        self.checking = asyncio.Lock()
        self.is_warm = True  # False while models are opened, when lanes may have to wait long

    async def alive(self, request: Request, said: Any) -> Response:  # noqa: ARG002 -- what every endpoint takes
        """Say whether every thread is alive, and none has been busy for longer than a request may take."""
        dead = self.stuck_lanes()
        if not dead and self.team is not None and self.team.stuck:
            dead = [f"{self.team.stuck} of {self.team.count} workers"]
        status = HTTPStatus.SERVICE_UNAVAILABLE if dead else HTTPStatus.OK
        return json_response({"status": f"stuck: {', '.join(dead)}" if dead else "ok"}, status)

    def stuck_lanes(self) -> list[str]:
        """Return the lanes of this process that make no progress."""
        longest = 2 * self.stuck_after if self.is_warm else math.inf
        return [lane.name for lane in self.asker.lanes if not lane.is_alive() or lane.seconds_behind() > longest]

    async def ready(self, request: Request, said: Any) -> Response:  # noqa: ARG002
        """Say whether each index has answered a test search within the last second; parts may be missing."""
        async with self.checking:
            if time.monotonic() - self.checked_at > SECONDS_OF_AN_ANSWER:
                self.probes = await asyncio.gather(*[self.probe(build) for build in self.indices.all()])
                self.checked_at = time.monotonic()
        problems = {probe.name: probe.problem for probe in self.probes if probe.problem}
        if problems:
            return json_response({"status": "not ready", "problems": problems}, HTTPStatus.SERVICE_UNAVAILABLE)
        partial = {probe.name: dict(probe.missing) for probe in self.probes if probe.missing}
        generations = {build.name: build.id for build in self.indices.all()}
        workers = {"workers": {"ready": self.team.ready, "of": self.team.count}} if self.team else {}
        return json_response(
            {"status": "ready", "indices": generations, **({"partial": partial} if partial else {}), **workers}
        )

    async def probe(self, build: Build) -> Probe:
        """Run a test search, and return its outcome."""
        try:
            async with asyncio.timeout(SECONDS_OF_A_PROBE):
                return Probe(build.name, missing=await build.probe())
        except TimeoutError:
            return Probe(build.name, f"no answer within {SECONDS_OF_A_PROBE:g} s")
        except (ClipRetrievalError, OSError, HttpError) as error:
            return Probe(build.name, str(error))
