"""An application on a socket, which uvicorn serves until it is stopped."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from clip_retrieval.errors import ConfigError
from clip_retrieval.installed import need
from clip_retrieval.server.app import App
from clip_retrieval.server.config import AccessConfig
from clip_retrieval.server.listen import BACKLOG, url_of
from clip_retrieval.server.protocol import protocol_of

IDLE_SECONDS = 75  # of a connection between requests; proxies keep their connections for 60


@contextmanager
def answering(sock: socket.socket, app: App, access: AccessConfig, grace_seconds: float) -> Iterator[str]:
    """Serve an application on a socket during the block, in a thread; yield its url.

    At the end no new requests are accepted, and requests in progress get `grace_seconds`.
    """
    server = make_server(app, access, grace_seconds)
    thread = threading.Thread(target=run_server, args=(server, sock), name="server")
    thread.start()
    try:
        yield url_of(sock, access)
    finally:
        server.should_exit = True
        thread.join()


def make_server(app: App, access: AccessConfig, grace_seconds: float, on_end: Callable[[], None] | None = None) -> Any:
    """Return uvicorn's server; `on_end` is called when a connection has ended.

    Raises ConfigError if uvicorn is not installed, or the certificate is invalid.
    """
    need("uvicorn", "the server", ConfigError, extra="serve")
    import uvicorn

    about_server = uvicorn.Config(
        app,
        http=protocol_of(app, on_end),
        lifespan="on",
        ws="none",
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=BACKLOG,
        timeout_keep_alive=IDLE_SECONDS,
        timeout_graceful_shutdown=int(max(1, grace_seconds)),
        ssl_certfile=access.ssl_certfile,
        ssl_keyfile=access.ssl_keyfile,
    )
    try:
        about_server.load()
    except OSError as error:  # including ssl.SSLError
        raise ConfigError(
            f"{access.ssl_certfile} cannot be used as a certificate: {error.strerror or error}"
        ) from error
    return uvicorn.Server(about_server)


def run_server(server: Any, sock: socket.socket | None) -> None:
    """Run uvicorn with its own event loop; without a socket it takes only connections that are passed to it."""
    with asyncio.Runner(loop_factory=server.config.get_loop_factory()) as runner:
        runner.run(server.serve(sockets=[] if sock is None else [sock]))
