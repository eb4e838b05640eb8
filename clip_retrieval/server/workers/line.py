"""A worker's end of its channel, in its event loop: receives connections, and reports its state to the supervisor."""

from __future__ import annotations

import asyncio
import socket
import threading
from typing import Any

from clip_retrieval.server.health import Health
from clip_retrieval.server.workers.channel import ALIVE, CONNECTION, ENDED, SECONDS_OF_A_BEAT, STUCK, STUCK_ONES
from clip_retrieval.server.workers.team import Team

AT_ONCE = 64  # messages that are read before requests are handled


class Line:
    """Takes connections for uvicorn, and reports when they end."""

    def __init__(self, channel: socket.socket, team: Team, health: Health) -> None:
        self.channel, self.team, self.health = channel, team, health
        channel.settimeout(0)
        self.is_over = threading.Event()
        self.unsent = b""
        self.lock = threading.Lock()
        self.tasks: set[asyncio.Task[None]] = set()
        self.server: Any = None

    def open(self, server: Any) -> None:
        """Begin to listen, in the event loop of a server of uvicorn's."""
        self.server, self.loop = server, asyncio.get_running_loop()
        self.loop.add_reader(self.channel.fileno(), self.hear)
        self.beat()

    def say(self, said: bytes) -> None:
        """Send a message to the supervisor, from any thread; if the channel is full, it is sent with the next beat."""
        with self.lock:
            self.unsent += said
            try:
                self.unsent = self.unsent[self.channel.send(self.unsent) :] if self.unsent else b""
            except BlockingIOError:
                return
            except OSError:  # the supervisor is gone, which `hear` notices
                self.unsent = b""

    def end_one(self) -> None:
        """Report that a connection has ended."""
        self.say(ENDED)

    def beat(self) -> None:
        self.say(STUCK if self.health.stuck_lanes() else ALIVE)
        self.health.asker.metrics.publish()
        if not self.is_over.is_set():
            self.loop.call_later(SECONDS_OF_A_BEAT, self.beat)

    def hear(self) -> None:
        for _ in range(AT_ONCE):
            try:
                said, sockets, _, _ = socket.recv_fds(self.channel, 1, 1)
            except BlockingIOError:
                return
            except OSError:
                said, sockets = b"", []
            if not said:
                self.loop.remove_reader(self.channel.fileno())
                self.is_over.set()
                return
            self.take_in(said[0], sockets)

    def take_in(self, said: int, sockets: list[int]) -> None:
        if said == CONNECTION:
            for number in sockets:
                task = self.loop.create_task(self.connect(socket.socket(fileno=number)))
                self.tasks.add(task)
                task.add_done_callback(self.tasks.discard)
        elif said >= STUCK_ONES:
            self.team.stuck = said - STUCK_ONES
        else:
            self.team.ready = said

    async def connect(self, connection: socket.socket) -> None:
        connection.settimeout(0)
        config = self.server.config
        try:
            await self.loop.connect_accepted_socket(self.make, connection, ssl=config.ssl)
        except OSError:  # the client hung up, or does not use TLS
            connection.close()
            self.end_one()

    def make(self) -> asyncio.Protocol:
        """Return the protocol of a new connection, as uvicorn makes it for connections that it accepts itself."""
        server = self.server
        made: asyncio.Protocol = server.config.http_protocol_class(
            config=server.config, server_state=server.server_state, app_state=server.lifespan.state, _loop=self.loop
        )
        return made
