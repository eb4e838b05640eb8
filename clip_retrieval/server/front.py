"""Only the web page, for a server elsewhere: `clip-retrieval front`."""

from __future__ import annotations

import logging
from typing import Any

from clip_retrieval.process.interrupts import hearing_stop
from clip_retrieval.server.about import front_settings
from clip_retrieval.server.access import Access
from clip_retrieval.server.app import App, Route, Routes, page_headers
from clip_retrieval.server.config import FrontConfig, LimitsConfig
from clip_retrieval.server.listen import bind
from clip_retrieval.server.messages import Request, Response, json_response
from clip_retrieval.server.metrics import Metrics
from clip_retrieval.server.sockets import answering
from clip_retrieval.server.static import OURS, read_front, serve_file

logger = logging.getLogger(__name__)


def open_front(config: FrontConfig) -> App:
    """Return the application: the page's files, and config.json, which names the page's server."""
    files = read_front(OURS)

    async def configure(request: Request, said: Any) -> Response:  # noqa: ARG001 -- what every endpoint takes
        return json_response(front_settings(request, config.default_backend, config.default_index, config.url_column))

    routes = Routes(
        exact={"/config.json": {"GET": Route(handler=configure, is_open=True)}},
        beginnings={},
        files=lambda request: serve_file(files, request),
        page_headers=page_headers(config.default_backend),
    )
    return App(routes, Access(config.access, ()), LimitsConfig(), Metrics())


def run_front(config: FrontConfig) -> None:
    """Serve until a signal says stop."""
    with (
        hearing_stop() as stop,
        bind(config.access) as sock,
        answering(sock, open_front(config), config.access, LimitsConfig().grace_seconds) as url,
    ):
        logger.info(
            "the page is at %s; it uses %s, which must be started with --cors %s", url, config.default_backend, url
        )
        stop.wait()
