"""The socket that a server listens on, and log lines about its address."""

from __future__ import annotations

import errno
import logging
import socket

from clip_retrieval.errors import ConfigError
from clip_retrieval.server.access import is_loopback
from clip_retrieval.server.config import AccessConfig

logger = logging.getLogger(__name__)

BACKLOG = 2048


def bind(config: AccessConfig) -> socket.socket:
    """Return a listening socket, whose clients wait for the server. Raises ConfigError if it cannot be opened."""
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((config.host, config.port))
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        why = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be opened ({error.strerror or error})"
        raise ConfigError(f"port {config.port} of {config.host} {why}; name another --port, or 0 for any") from error
    return sock


def url_of(sock: socket.socket, config: AccessConfig) -> str:
    """Return the url of a listening socket."""
    host, port = sock.getsockname()[:2]
    scheme = "http" if config.ssl_certfile is None else "https"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"


def tell_address(url: str, config: AccessConfig) -> None:
    """Log the address of the server, and who may use it."""
    logger.info("%s answers; its pages are at %s/v1/docs", url, url)
    if not is_loopback(config.host) and config.api_key_file is None:
        logger.warning("anyone who can reach %s may use it; --api_key_file requires a key", url)
