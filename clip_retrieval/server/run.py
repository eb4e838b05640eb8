"""One process of `back`: opens indices, joins lanes and endpoints into an application, and serves it until stopped."""

from __future__ import annotations

import gc
import logging
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clip_retrieval.errors import ConfigError
from clip_retrieval.process.interrupts import hearing_stop
from clip_retrieval.process.resources import raise_file_limit
from clip_retrieval.server import about, legacy, openapi, v1
from clip_retrieval.server.access import Access
from clip_retrieval.server.app import App, Handler, Route, Routes, page_headers
from clip_retrieval.server.asking import Asker
from clip_retrieval.server.config import BackConfig
from clip_retrieval.server.health import Health
from clip_retrieval.server.listen import bind, tell_address
from clip_retrieval.server.local import LocalBuild
from clip_retrieval.server.metrics import Metrics
from clip_retrieval.server.named import list_served
from clip_retrieval.server.served import Indices
from clip_retrieval.server.sockets import answering
from clip_retrieval.server.static import OURS, read_front, serve_file
from clip_retrieval.server.workers.team import Team

logger = logging.getLogger(__name__)

SHORTEST_KEY = 16
OBJECTS_BETWEEN_COLLECTIONS = 20_000  # of 100 requests; with Python's 700, each request pays for a collection


@dataclass(frozen=True, eq=False)
class Served:
    """An application with the threads below it."""

    app: App
    indices: Indices
    asker: Asker
    health: Health

    def close(self) -> None:
        self.indices.close()
        self.asker.close()


def open_server(config: BackConfig, team: Team | None = None) -> Served:
    """Open the indices and their application, alone or in a team of processes. Raises ClipRetrievalError."""
    keys = read_keys(config.access.api_key_file)
    files = read_front(Path(config.front_folder).expanduser() if config.front_folder else OURS)
    metrics = Metrics(team.figures if team else None)
    asker = Asker(config, metrics)
    try:
        indices = Indices(list_served(config), asker)
    except BaseException:
        asker.close()
        raise
    metrics.look = asker.figures
    health = Health(indices, asker, config.limits.request_timeout, team)
    seen = about.Endpoints(config, indices, asker)
    routes = Routes(
        exact=list_routes(config, indices, asker, health),
        beginnings={about.PICTURES: get(seen.show_picture), about.FILES: get(seen.show_file, is_linked=True)},
        files=lambda request: serve_file(files, request),
        page_headers=page_headers(config.default_backend),
        is_our_front=config.front_folder is None,
    )
    indices.watch(config.reload_seconds)
    app = App(routes, Access(config.access, keys), config.limits, metrics, indices.connections.close)
    return Served(app, indices, asker, health)


def list_routes(
    config: BackConfig, indices: Indices, asker: Asker, health: Health
) -> Mapping[str, Mapping[str, Route]]:
    """Return the endpoint of each path."""
    old, new, seen = (part.Endpoints(config, indices, asker) for part in (legacy, v1, about))
    assert isinstance(old, legacy.Endpoints)
    assert isinstance(new, v1.Endpoints)
    assert isinstance(seen, about.Endpoints)
    return {
        "/indices-list": get(seen.list_names),
        "/knn-service": post(old.knn_service),
        "/metadata": post(old.metadata),
        "/metrics": get(seen.read_metrics),
        "/metrics-summary": get(seen.summarize),
        "/config.json": get(seen.configure_front, is_open=True),
        "/healthz": get(health.alive, is_open=True),
        "/readyz": get(health.ready, is_open=True),
        "/v1/search": post(new.search),
        "/v1/rows": post(new.rows),
        "/v1/embed": post(new.embed),
        "/v1/embeddings": post(new.embed),
        "/v1/indices": get(seen.list_indices),
        "/v1/openapi.json": get(openapi.answer(openapi.as_json()), is_open=True),
        "/v1/docs": get(openapi.answer(openapi.as_page()), is_open=True),
    }


def get(handler: Handler, *, is_open: bool = False, is_linked: bool = False) -> dict[str, Route]:
    return {"GET": Route(handler=handler, is_open=is_open, is_linked=is_linked)}


def post(handler: Handler) -> dict[str, Route]:
    return {"POST": Route(handler=handler)}


def read_keys(path: str | None) -> list[bytes]:
    """Return the keys in a file, one per line; lines that begin with # are comments. Raises ConfigError."""
    if path is None:
        return []
    try:
        lines = Path(path).expanduser().read_bytes().splitlines()
    except OSError as error:
        raise ConfigError(f"api_key_file {path} cannot be read: {error.strerror or error}") from error
    keys = [line.strip() for line in lines if line.strip() and not line.startswith(b"#")]
    if not keys:
        raise ConfigError(f"api_key_file {path} holds no key; write one per line")
    if any(len(key) < SHORTEST_KEY for key in keys):
        raise ConfigError(
            f"a key in {path} is shorter than {SHORTEST_KEY} characters; make it with `openssl rand -hex 32`"
        )
    return keys


@dataclass(frozen=True)
class Listening:
    """A listening server, for the code that started it."""

    url: str
    served: Served


@contextmanager
def listening(config: BackConfig) -> Iterator[Listening]:
    """Serve in a thread during the block, then stop: requests in progress get `grace_seconds`."""
    with bind(config.access) as sock:
        served = open_server(config)
        try:
            with answering(sock, served.app, config.access, config.limits.grace_seconds) as url:
                yield Listening(url, served)
        finally:
            served.close()


def run_alone(config: BackConfig) -> None:
    """Serve in this process until a signal says stop."""
    raise_file_limit()  # each connection takes one
    with hearing_stop() as stop, listening(config) as server:
        tell_of_indices(server.served)
        tell_address(server.url, config.access)
        warm_up(server.served)
        stop.wait()
        logger.info("stopping: requests in progress are answered first")


def tell_of_indices(served: Served) -> None:
    """Log what is served."""
    for build in served.indices.all():
        logger.info("%s: %s", build.name, describe(build.describe()))
        if not build.has_pictures:
            where = "--pictures_below" if isinstance(build, LocalBuild) else "--pictures_below at the parts"
            logger.info("%s: no pictures are served; name their folder with %s", build.name, where)


def describe(about_index: Mapping[str, Any]) -> str:
    rows = ", ".join(f"{count:,} {modality} rows" for modality, count in about_index["rows"].items())
    return f"{rows}, {about_index['clip_model']}, generation {about_index['generation']}"


def warm_up(served: Served) -> None:
    """Open the models now, so the first request does not wait for them; errors are logged."""

    def open_models() -> None:
        for build in served.indices.all():
            if not isinstance(build, LocalBuild):
                continue  # parts have their own models
            searcher = build.generation.first
            try:
                with searcher.encoding:
                    searcher.load()
            except Exception as error:  # only queries with texts and pictures fail, with this error  # noqa: BLE001
                logger.warning("%s: queries with texts or pictures will fail: %s", build.name, error)

        gc.freeze()  # existing objects stay: no collection has to visit them
        served.health.is_warm = True

    gc.set_threshold(OBJECTS_BETWEEN_COLLECTIONS)
    served.health.is_warm = False
    threading.Thread(target=open_models, name="warm-up", daemon=True).start()
