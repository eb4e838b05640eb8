"""/healthz and /readyz: whether the threads work, and whether every index has just encoded and searched something."""

from __future__ import annotations

import asyncio
import math
import time
from http import HTTPStatus
from typing import Any

import numpy as np

from clip_retrieval.errors import ClipRetrievalError
from clip_retrieval.query.config import SelectionConfig
from clip_retrieval.query.embed import embed_vector
from clip_retrieval.server.asking import Ask, Asker
from clip_retrieval.server.indices import Generation, Indices
from clip_retrieval.server.messages import HttpError, Request, Response, json_response

SECONDS_OF_AN_ANSWER = 1.0  # for which an answer of /readyz holds
SECONDS_OF_A_PROBE = 10.0
PROBE = "a photo of a dog"


class Health:
    """The state of one server."""

    def __init__(self, indices: Indices, asker: Asker, stuck_after: float) -> None:
        self.indices, self.asker, self.stuck_after = indices, asker, stuck_after
        self.checked: tuple[float, dict[str, str]] = (-SECONDS_OF_AN_ANSWER, {"server": "has just started"})
        self.checking = asyncio.Lock()
        self.is_warm = True  # False while models are opened, for which lanes may have to wait long

    async def alive(self, request: Request, said: Any) -> Response:  # noqa: ARG002 -- what every endpoint takes
        """Say whether every thread is there, and none has been at its work for longer than a request may take."""
        lanes = self.asker.lanes
        longest = 2 * self.stuck_after if self.is_warm else math.inf
        dead = [lane.name for lane in lanes if not lane.is_alive() or lane.seconds_behind() > longest]
        status = HTTPStatus.SERVICE_UNAVAILABLE if dead else HTTPStatus.OK
        return json_response({"status": f"stuck: {', '.join(dead)}" if dead else "ok"}, status)

    async def ready(self, request: Request, said: Any) -> Response:  # noqa: ARG002
        """Say whether each index has encoded and searched something within the last second."""
        async with self.checking:
            if time.monotonic() - self.checked[0] > SECONDS_OF_AN_ANSWER:
                found = await asyncio.gather(*[self.probe(generation) for generation in self.indices.all()])
                self.checked = (time.monotonic(), {name: problem for name, problem in found if problem})
        problems = self.checked[1]
        generations = {generation.name: generation.id for generation in self.indices.all()}
        if problems:
            return json_response({"status": "not ready", "problems": problems}, HTTPStatus.SERVICE_UNAVAILABLE)
        return json_response({"status": "ready", "indices": generations})

    async def probe(self, generation: Generation) -> tuple[str, str]:
        """Encode and search something; return the index's name, and what went wrong."""
        try:
            async with asyncio.timeout(SECONDS_OF_A_PROBE):
                await self.encode_and_search(generation)
        except TimeoutError:
            return generation.name, f"no answer within {SECONDS_OF_A_PROBE:g} s"
        except (ClipRetrievalError, OSError, HttpError) as error:
            return generation.name, str(error)
        return generation.name, ""

    async def encode_and_search(self, generation: Generation) -> None:
        searcher = generation.first
        await self.asker.load(searcher)
        info = searcher.loaded[0].info
        if "text" in info.towers:
            query = await self.asker.embed_text(searcher, min(info.vocabulary) if info.vocabulary else PROBE)
        else:
            query = embed_vector(np.ones(searcher.index.dim, np.float32), "a probe")
        await self.asker.ask(Ask(searcher, (query,), SelectionConfig(num_results=1)))
