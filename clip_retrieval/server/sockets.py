"""An application at a socket: bound, and answered for by uvicorn until it is stopped."""

from __future__ import annotations

import asyncio
import errno
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from clip_retrieval.errors import ConfigError
from clip_retrieval.installed import need
from clip_retrieval.server.app import App
from clip_retrieval.server.config import AccessConfig

IDLE_SECONDS = 75  # of a connection between requests; proxies keep theirs for 60
BACKLOG = 2048


@contextmanager
def answering(sock: socket.socket, app: App, access: AccessConfig, grace_seconds: float) -> Iterator[str]:
    """Let an application answer at a socket while the block runs, in a thread; yield its url.

    At the end nothing new is taken, and requests under way get `grace_seconds`.
    """
    server = make_server(app, access, grace_seconds)
    thread = threading.Thread(target=run_server, args=(server, sock), name="server")
    thread.start()
    try:
        host, port = sock.getsockname()[:2]
        scheme = "http" if access.ssl_certfile is None else "https"
        yield f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"
    finally:
        server.should_exit = True
        thread.join()


def make_server(app: App, access: AccessConfig, grace_seconds: float) -> Any:
    """Return uvicorn's server. Raises ConfigError where it is not installed, or the certificate is none."""
    need("uvicorn", "the server", ConfigError, extra="serve")
    import uvicorn

    about_server = uvicorn.Config(
        app,
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
    except OSError as error:  # ssl.SSLError among them
        raise ConfigError(
            f"{access.ssl_certfile} cannot be used as a certificate: {error.strerror or error}"
        ) from error
    return uvicorn.Server(about_server)


def run_server(server: Any, sock: socket.socket) -> None:
    """Run uvicorn with an event loop of its own."""
    with asyncio.Runner(loop_factory=server.config.get_loop_factory()) as runner:
        runner.run(server.serve(sockets=[sock]))


def bind(config: AccessConfig) -> socket.socket:
    """Return a socket that listens: who connects waits for the server. Raises ConfigError where none can be had."""
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((config.host, config.port))
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        why = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be had ({error.strerror or error})"
        raise ConfigError(f"port {config.port} of {config.host} {why}; name another --port, or 0 for any") from error
    return sock
