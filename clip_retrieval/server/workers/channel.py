"""The messages of a supervisor and its workers, one byte each, over a Unix socket for each worker.

The end of its channel tells a worker to stop, or that the supervisor is gone.
"""

from __future__ import annotations

import json
import socket
from dataclasses import dataclass
from typing import Any

from clip_retrieval.options import from_json, to_json
from clip_retrieval.server.config import BackConfig

# From a worker.
READY, ENDED, ALIVE, STUCK, LEAVES = b"r", b"-", b".", b"s", b"l"  # ENDED: one of its connections
FAILED = b"f"  # a sentence follows, up to the end of the channel

# To a worker: CONNECTION with a socket; how many workers are ready (1 to 64); STUCK_ONES + how many hang.
CONNECTION, STUCK_ONES = 0, 128

SECONDS_OF_A_BEAT = 1.0  # between two signs of life
LENGTH_BYTES = 4


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a worker receives when it starts."""

    config: BackConfig
    number: int  # the first is 1
    is_first: bool  # the indices have not been logged yet
    log_level: int

    def send(self, channel: socket.socket) -> None:
        said = json.dumps({**vars(self), "config": to_json(self.config)}).encode()
        channel.sendall(len(said).to_bytes(LENGTH_BYTES, "big") + said)

    @classmethod
    def receive(cls, channel: socket.socket) -> Task:
        """Return what the supervisor has sent. Raises EOFError if it is gone."""
        said: dict[str, Any] = json.loads(receive(channel, int.from_bytes(receive(channel, LENGTH_BYTES), "big")))
        return cls(**{**said, "config": from_json(BackConfig, said["config"])})


def receive(channel: socket.socket, size: int) -> bytes:
    parts = bytearray()
    while len(parts) < size:
        part = channel.recv(size - len(parts))
        if not part:
            raise EOFError
        parts += part
    return bytes(parts)
