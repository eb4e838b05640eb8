"""What may be fetched: limits of time, size and tries, as options; importing them opens no http and no TLS."""

from __future__ import annotations

from dataclasses import dataclass

from clip_retrieval.errors import ConfigError
from clip_retrieval.options import check_least, option


@dataclass(frozen=True, kw_only=True)
class FetchLimits:
    """Limits of time, size and retries, and which urls may be fetched."""

    fetch_timeout: float = option(10.0, help="urls: seconds for one request, with redirects and body.", may_change=True)
    fetch_retries: int = option(
        2, help="urls: further tries after 429, 5xx, time-outs and cut connections.", least=0, may_change=True
    )
    fetch_max_bytes: int = option(32 << 20, help="urls: largest download in bytes.", least=1)
    allow_private_addresses: bool = option(False, help="urls: fetch from private and loopback addresses too.")
    respect_robots_tag: bool = option(True, help="urls: leave out pictures whose X-Robots-Tag forbids use by machines.")

    def __post_init__(self) -> None:
        if not self.fetch_timeout > 0:
            raise ConfigError(f"fetch_timeout must be more than 0, not {self.fetch_timeout}")
        check_least(self)
