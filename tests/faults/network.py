"""A bad network on loopback: connections that are slow, and connections that are reset half-way."""

import asyncio
import contextlib
import random
import socket
import struct
from collections.abc import AsyncIterator, Callable

_SLOW = 0.1  # of the connections
_MAX_DELAY_S = 0.03


def reset(writer: asyncio.StreamWriter) -> None:
    """End a connection with RST instead of FIN: what was on its way is lost."""
    raw = writer.get_extra_info("socket")
    if raw is not None:
        with contextlib.suppress(OSError):
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


class Network:
    """What happens on it; `calm` ends all accidents."""

    def __init__(self, seed: int, resets: float) -> None:
        self.random = random.Random(seed)
        self.calm = False
        self.connections = 0
        self.resets = 0
        self._reset_rate = resets

    def accident(self) -> tuple[float, int | None]:
        """Of one new connection: each chunk's delay, and after how many bytes it is reset."""
        self.connections += 1
        if self.calm:
            return 0, None
        delay = self.random.uniform(0, _MAX_DELAY_S) if self.random.random() < _SLOW else 0
        limit = self.random.randrange(1500) if self.random.random() < self._reset_rate else None
        return delay, limit


@contextlib.asynccontextmanager
async def proxy(target: int, network: Network) -> AsyncIterator[int]:
    """Forward to port `target`; yields the proxy's own port."""
    tasks: set[asyncio.Task[None]] = set()

    async def pump(
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        delay: float,
        passed: Callable[[int], None],
    ) -> None:
        try:
            while data := await reader.read(65536):
                if delay:
                    await asyncio.sleep(delay)
                passed(len(data))
                writer.write(data)
                await writer.drain()
            writer.write_eof()
        except OSError:
            reset(writer)

    async def forward(down: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        delay, limit = network.accident()
        try:
            up, server = await asyncio.open_connection("127.0.0.1", target)
        except OSError:
            reset(client)
            return
        left = limit

        def passed(count: int) -> None:
            nonlocal left
            if left is not None and (left := left - count) < 0:
                network.resets += 1
                raise ConnectionResetError

        pumps = [
            asyncio.create_task(pump(down, server, delay, passed)),
            asyncio.create_task(pump(up, client, delay, passed)),
        ]
        try:
            done, _ = await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            if left is not None and left < 0:
                return  # both ends are reset below
            if pumps[1] not in done:  # the request is through; its answer is not
                await asyncio.wait(pumps)
        finally:
            for task in pumps:
                task.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            for writer in (client, server):
                if left is not None and left < 0:
                    reset(writer)
                else:
                    writer.close()

    def connect(down: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(forward(down, client))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    server = await asyncio.start_server(connect, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0.05)  # the closed transports leave the loop
